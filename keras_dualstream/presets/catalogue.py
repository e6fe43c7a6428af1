"""The published ImageNet-1K weights: which there are, where, and under which licence."""

import dataclasses
import fnmatch

from keras_dualstream.presets.preprocessing import Preprocessing

TRANSXNET = "https://github.com/LMMMEng/TransXNet/releases"
DFVT = "https://github.com/ginobilinie/DFvT/releases"
PADDLE = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/"
# Told by the content; the name is for people.
SUFFIXES = {"pytorch": ".pth", "paddle": ".pdparams"}


@dataclasses.dataclass(frozen=True)
class Published:
    """Published weights of one variant at one image size.

    Args:
        variant: str. Name of the builder.
        resolution: int. Height and width of the images they were trained for.
        format: `"pytorch"` or `"paddle"`.
        top_1: float. Published accuracy on ImageNet-1K, percent.
        crop: float. Share of the resized image's side that evaluation sees.
        licence: str; `None` where the source states none, which allows no
            redistribution.
        page: str. Where a person gets the file.
        url: str. Where a program gets it; `None` where it cannot. Defaults to `None`.
        access: str. What a person needs there. Defaults to `""`.
        sha256: str. Checksum that the source publishes; `None` where it
            publishes none. Defaults to `None`.
        options: dict. Arguments of the backbone that the weights were made with
            and the variant does not fix. Defaults to none.
    """

    variant: str
    resolution: int
    format: str
    top_1: float
    crop: float
    licence: str
    page: str
    url: str = None
    access: str = ""
    sha256: str = None
    options: dict = dataclasses.field(default_factory=dict)

    @property
    def preprocessing(self):
        """The `Preprocessing` of the evaluation."""
        return Preprocessing(self.resolution, self.crop)


def _transxnet(size, top_1, crop, file, resolution=224, **options):
    url = f"{TRANSXNET}/download/v1.0/{file}"
    variant = f"TransXNet{size}"
    return Published(variant, resolution, "pytorch", top_1, crop, "Apache-2.0", TRANSXNET, url, options=options)


def _dfvt(size, top_1, file):
    url = f"{DFVT}/download/Classification/{file}"
    return Published(f"DFvT{size}", 224, "pytorch", top_1, 0.875, None, DFVT, url)


def _ds_net(size, top_1, file):
    page = "https://github.com/PaddlePaddle/PaddleClas"
    return Published(f"DSNet{size}", 224, "paddle", top_1, 0.875, "Apache-2.0", page, PADDLE + file)


def _ds_net_pytorch(size, top_1, drive):
    page = f"https://drive.google.com/file/d/{drive}/view"
    url = f"https://drive.usercontent.google.com/download?id={drive}&export=download&confirm=t"
    return Published(f"DSNet{size}", 224, "pytorch", top_1, 0.875, "Apache-2.0", page, url)


def _dual_vit(size, resolution, top_1, baidu):
    page, access = f"https://pan.baidu.com/s/{baidu}", "access code: nets"
    return Published(f"DualViT{size}", resolution, "pytorch", top_1, 0.96, "Apache-2.0", page, access=access)


# The first row of a variant is what `weights="imagenet"` means.
PRESETS = {
    "dfvt_t_224": _dfvt("T", 72.95, "DFvT_T_7295.pth"),
    "dfvt_s_224": _dfvt("S", 78.29, "DFvT_S_7829.pth"),
    "dfvt_b_224": _dfvt("B", 81.98, "DFvT_B_8198.pth"),
    "ds_net_t_224": _ds_net("T", 79.2, "DSNet_tiny_pretrained.pdparams"),
    "ds_net_t_224_pytorch": _ds_net_pytorch("T", 79.0, "1LQN95zSfmROSh7AVDAVTWCqH3EHZcATv"),
    "ds_net_s_224": _ds_net("S", 81.4, "DSNet_small_pretrained.pdparams"),
    "ds_net_s_224_pytorch": _ds_net_pytorch("S", 82.3, "1aqMAimClkkFBHX_VzJ8121XCdbYPz777"),
    "ds_net_b_224": _ds_net("B", 81.8, "DSNet_base_pretrained.pdparams"),
    "dualvit_s_224": _dual_vit("S", 224, 84.1, "1mJapQgFXs3NYnFUCbsgYwQ"),
    "dualvit_s_384": _dual_vit("S", 384, 85.2, "19efu-TJ0O5o4jIZXSbcNeg"),
    "dualvit_b_224": _dual_vit("B", 224, 85.2, "1d0JmFb1fYrj83Dhz8znUQQ"),
    "dualvit_b_384": _dual_vit("B", 384, 86.0, "1ujl-tHF5WVJRkb3xRoJoLQ"),
    "dualvit_l_224": _dual_vit("L", 224, 85.7, "1UGI4vVj-Oivv7yR0K2bEXg"),
    "dualvit_l_384": _dual_vit("L", 384, 86.5, "1PyvD3sswCG_66pHQtWw0Rw"),
    "transxnet_t_224": _transxnet("T", 81.6, 0.9, "transx-t.pth.tar"),
    "transxnet_s_224": _transxnet("S", 83.8, 0.9, "transx-s.pth.tar"),
    "transxnet_b_224": _transxnet("B", 84.6, 0.95, "transx-b.pth.tar"),
    "transxnet_b_384": _transxnet("B", 85.5, 0.95, "transx-b-384.pth.tar", 384, pretraining_size=384),
}


def list_presets(pattern="*"):
    """The names of the published weights that `weights=` and `from_preset` take.

    Args:
        pattern: str. Which names; `*` stands for any characters. Defaults to `"*"`.

    Returns:
        List of str.

    Example:

    >>> list_presets("transxnet_b_*")
    ['transxnet_b_224', 'transxnet_b_384']
    """
    return fnmatch.filter(PRESETS, pattern)


def presets_of(variants):
    """The names of the presets of some variants.

    Args:
        variants: collection of names of builders.

    Returns:
        List of str.
    """
    return [name for name, row in PRESETS.items() if row.variant in variants]
