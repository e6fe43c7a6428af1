"""An interpreter of pickles that builds inert objects and calls nothing a pickle names."""

# Why not `pickle.Unpickler` with `find_class` overridden? Its C code fails in ways that no override prevents, as tried
# on Python 3.11: BYTEARRAY8 and LONG_BINPUT allocate what they declare first (MemoryError at 8 GiB); a dict key of five
# million nested tuples overflows the C stack in `hash` (segmentation fault); where each of 40 tuples holds the next
# twice, `hash` takes 2^40 steps. EXT also consults a registry that any imported library may have filled. `pickletools`
# only splits the bytes into opcodes, and what each may do is written down here.

# A checkpoint with its optimizer has some 200,000. An opcode makes at most an object of some 100 bytes.
MOST_OPCODES = 2_000_000

# PyTorch's magic number has 80.
MOST_BITS = 128

MOST_ARGUMENTS = 16

# Without the text opcodes of protocols 0 and 1, which no framework writes.
LITERALS = {
    *("BINBYTES", "BINBYTES8", "BINFLOAT", "BININT", "BININT1", "BININT2", "BINSTRING", "BINUNICODE", "BINUNICODE8"),
    *("BYTEARRAY8", "LONG1", "LONG4", "SHORT_BINBYTES", "SHORT_BINSTRING", "SHORT_BINUNICODE"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Global:
    """A class or function that a pickle names; nothing is imported for it.

    Args:
        name: str. Its full name, for messages.
        make: function from the arguments of a call to an inert object that
            stands for the result; `None` where a call is refused.
        is_class: bool. Whether an object of it may be made all the same, as a
            `Placeholder`. Defaults to `False`.
    """

    __slots__ = ("is_class", "make", "name")

    def __init__(self, name, make=None, is_class=False):
        self.name, self.make, self.is_class = name, make, is_class


class Placeholder(dict):
    """An object of a class that is not looked up; a dict, as classes of settings often are one."""

    __slots__ = ()


def load_pickle(file, find_global, load_persistent=None):
    """Reads one pickle from a file, up to and including its STOP.

    Args:
        file: a `BoundedFile`.
        find_global: function from module and name to an inert object, mostly a `Global`.
        load_persistent: function from a persistent id to an inert object.
            Defaults to `None`, which refuses persistent ids.

    Returns:
        The pickled object, made of Python's plain types, `Global`s,
        `Placeholder`s and what the functions return.

    Raises:
        ValueError: if the pickle is damaged, does what is not allowed, or does too much.
    """
    # Here, as importing the package is to bring nothing that Keras does not.
    import pickletools

    machine = _Machine(find_global, load_persistent)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > MOST_OPCODES:
            raise ValueError(f"its pickle has more than {MOST_OPCODES} opcodes")
        name = opcode.name
        if name == "STOP":
            return machine.pop()
        if name in LITERALS:
            if type(argument) is int and argument.bit_length() > MOST_BITS:
                raise ValueError(f"its pickle has a number of {argument.bit_length()} bits")
            machine.push(argument)
        elif name in CONSTANTS:
            machine.push(CONSTANTS[name])
        elif name in OPERATIONS:
            OPERATIONS[name](machine, argument)
        else:
            raise ValueError(f"its pickle has the opcode {name}, which no checkpoint needs")
    raise ValueError("its pickle has no end")


class _Machine:
    """Stack, marks and memo, and the opcodes that work on them."""

    def __init__(self, find_global, load_persistent):
        self.stack, self.marks, self.memo = [], [], {}
        self.find_global, self.load_persistent = find_global, load_persistent

    def push(self, item):
        self.stack.append(item)

    def pop(self):
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("its pickle takes from an empty stack")
        return self.stack.pop()

    def top(self):
        item = self.pop()
        self.push(item)
        return item

    def pop_to_mark(self):
        if not self.marks:
            raise ValueError("its pickle has no mark where it needs one")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self, _):
        self.marks.append(len(self.stack))

    def drop(self, _):
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def put(self, index):
        index = len(self.memo) if index is None else index
        # Multiples of a large prime would all hash alike.
        if not 0 <= index < 2**32:
            raise ValueError("its pickle numbers an object beyond 2**32")
        self.memo[index] = self.top()

    def get(self, index):
        if index not in self.memo:
            raise ValueError("its pickle refers to an object that it does not hold")
        self.push(self.memo[index])

    def tuple_of(self, count):
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def append(self, items):
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Placeholder):
            raise ValueError("its pickle appends to what is no list")

    def set_items(self, items):
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("its pickle sets items of what is no dict")
        fill(target, zip(items[::2], items[1::2], strict=True))

    def dict_of(self, items):
        self.push({})
        self.set_items(items)

    def global_(self, argument):
        module, _, name = argument.partition(" ")
        self.push(self.find_global(module, name))

    def stack_global(self, _):
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("its pickle names a class by what is no text")
        self.push(self.find_global(module, name))

    def call(self, arguments):
        target = self.pop()
        if not isinstance(target, Global) or not isinstance(arguments, tuple):
            raise ValueError("its pickle calls what is no function")
        if len(arguments) > MOST_ARGUMENTS:
            raise ValueError(f"its pickle calls {target.name!r} with {len(arguments)} arguments")
        if target.make is not None:
            self.push(target.make(*arguments))
        elif target.is_class:
            self.push(Placeholder())
        else:
            raise ValueError(f"its pickle wants to call {target.name!r}, which is not on the list of what is harmless")

    def new_object(self, arguments):
        target = self.pop()
        if not isinstance(target, Global) or not isinstance(arguments, tuple):
            raise ValueError("its pickle makes an object of what is no class")
        # By `cls.__new__`, which only classes have: any name may be one.
        self.push(Placeholder() if target.make is None else target.make(*arguments[:MOST_ARGUMENTS]))

    def new_object_with_keywords(self, _):
        self.pop()
        self.new_object(self.pop())

    def build(self, _):
        state, target = self.pop(), self.top()
        if hasattr(type(target), "set_state"):
            target.set_state(state)
        elif not isinstance(target, dict):
            raise ValueError("its pickle gives a state to what has none")

    def persistent(self, _):
        if self.load_persistent is None:
            raise ValueError("its pickle refers to data outside it")
        self.push(self.load_persistent(self.pop()))


def fill(target, pairs):
    """Puts pairs into a dict; keys other than plain ones, whose hash may take for ever, are left out."""
    for key, value in pairs:
        if type(key) in (str, bytes, float, bool, type(None)) or (type(key) is int and key.bit_length() < 64):
            target[key] = value


OPERATIONS = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: machine.dict_of(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    # Sets as lists: nothing here asks for their members.
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "ADDITEMS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "FROZENSET": lambda machine, _: machine.push(machine.pop_to_mark()),
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": lambda machine, _: machine.call(machine.pop()),
    "NEWOBJ": lambda machine, _: machine.new_object(machine.pop()),
    "NEWOBJ_EX": _Machine.new_object_with_keywords,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
