"""A file whose declared lengths are not believed."""

# The only lines in a pickle are the names of classes.
LONGEST_LINE = 1000


class BoundedFile:
    """A binary file that is never asked for more than it holds; Python would allocate for it.

    Args:
        file: binary file, read from where it is.
        size: int. Where it ends.
    """

    def __init__(self, file, size):
        self.file, self.size = file, size

    def tell(self):
        """The position."""
        return self.file.tell()

    def read(self, count):
        """At most `count` bytes."""
        return self.file.read(max(0, min(count, self.size - self.file.tell())))

    def readline(self):
        """The bytes up to the end of the line."""
        line = self.file.readline(LONGEST_LINE)
        if len(line) == LONGEST_LINE:
            raise ValueError(f"its pickle has a line of more than {LONGEST_LINE} bytes")
        return line
