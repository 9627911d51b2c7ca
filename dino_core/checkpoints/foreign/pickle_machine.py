"""Reads a pickle as data: nothing that a file names is ever imported or called.

The instructions of a pickle (`pickletools` documents and decodes them) move values on a stack. Of
those that make an object, only containers and the functions in a caller's table are carried out;
everything else becomes an `Inert`. No number in a file decides how much memory or time the reading
takes. Python's own unpicklers do not guarantee that, even without any classes: a memo index of
2**31 makes the compiled one allocate 34 GB, and hashing a key of nested tuples can take years.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

MAX_STEPS = 2_000_000  # a few seconds; a checkpoint with its optimizer has tens of thousands
_MAX_INDEX = 1 << 32
_MAX_KEY = 1 << 63
# The newest protocol that Python has written so far.
_PROTOCOL = 5

PureFunction = Callable[..., Any]


class Malformed(ValueError):
    """A pickle makes no sense, or does what no checkpoint needs."""


class Inert:
    """Takes the place of an object, class or function that is not created.

    Attributes:
        kind: Its name, e.g. "argparse.Namespace".
    """

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"Inert({self.kind!r})"


class _Name(Inert):
    """A name in a pickle, which the pickle may then "call"."""

    __slots__ = ()


_MARK = Inert("mark")
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip
_VALUES = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
        "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    }
)  # fmt: skip


class PickleMachine:
    """Reads the pickles of one file, one after the other.

    Args:
        functions: Maps a full name, e.g. "collections.OrderedDict", to the function that is called
            for it. It gets the arguments in the pickle, and must not trust them.
        builders: Maps a type to a function that applies a pickled state to an object of this type.
            The states of other objects are ignored.
        persistent: Maps the id of an object outside the pickle to that object.
    """

    def __init__(
        self,
        functions: Mapping[str, PureFunction],
        builders: Mapping[type, Callable[[Any, Any], None]],
        persistent: Callable[[Any], Any],
    ) -> None:
        self._functions = functions
        self._builders = builders
        self._persistent = persistent
        self._steps = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self, file: Any) -> Any:
        """Read the next pickle; the file's position is then behind it.

        Args:
            file: An object with `read`, `readline` and `tell`. Its `read` must not allocate memory
                for more bytes than there are (a BytesIO or an mmap, not a file on disk).

        Raises:
            Malformed, or another exception that a malformed pickle can cause: ValueError,
            IndexError, KeyError, TypeError, OverflowError, UnicodeError.
        """
        # A legacy file holds several pickles, each with a memo of its own. The number of steps is
        # counted over all of them.
        self._stack, self._memo = [], {}
        # `genops` only decodes: it creates numbers, texts and bytes, and imports nothing.
        for opcode, argument, _ in pickletools.genops(file):
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise Malformed(f"more than {MAX_STEPS} instructions")
            name = opcode.name
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                self._stack.append(_EMPTY[name]())
            elif name == "STOP":
                return self._pop()
            elif name in _HANDLERS:
                _HANDLERS[name](self, argument)
            else:
                raise Malformed(f"the instruction {name}")
        raise Malformed("no end")  # pragma: no cover - genops raises by itself

    def _pop(self) -> Any:
        value = self._stack.pop()  # IndexError where it is empty, which the caller handles
        if value is _MARK:
            raise Malformed("a mark where a value belongs")
        return value

    def _pop_marked(self) -> list[Any]:
        """Remove the last mark and the values above it, and return these."""
        stack = self._stack
        start = len(stack) - 1
        while stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise Malformed("no mark")
        values = stack[start + 1 :]
        del stack[start:]
        return values

    def _mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _drop(self, _: Any) -> None:
        self._stack.pop()

    def _drop_marked(self, _: Any) -> None:
        self._pop_marked()

    def _duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _check_protocol(self, version: Any) -> None:
        if version > _PROTOCOL:
            raise Malformed(f"protocol {version}")

    def _frame(self, _: Any) -> None:
        pass  # a hint how much to read ahead

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_marked()))

    def _tuple_of(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(values)))

    def _list(self, _: Any) -> None:
        self._stack.append(self._pop_marked())

    def _append(self, _: Any) -> None:
        self._extend_last([self._pop()])

    def _appends(self, _: Any) -> None:
        self._extend_last(self._pop_marked())

    def _extend_last(self, values: list[Any]) -> None:
        target = self._stack[-1]
        # The exact type: the machine creates no subclasses, so anything else is malformed or an
        # `Inert`.
        if type(target) is list:
            target.extend(values)
        elif type(target) is not Inert:
            raise Malformed("items for what is no list")

    def _dict(self, _: Any) -> None:
        values = self._pop_marked()
        self._stack.append({})
        self._fill_last(values)

    def _set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._fill_last([key, value])

    def _set_items(self, _: Any) -> None:
        self._fill_last(self._pop_marked())

    def _fill_last(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if len(values) % 2:
            raise Malformed("a key without a value")
        if type(target) in (dict, OrderedDict):
            target.update((_key(k), v) for k, v in zip(values[::2], values[1::2], strict=True))
        elif type(target) is not Inert:
            raise Malformed("items for what is no dictionary")

    def _add_items(self, _: Any) -> None:
        values = self._pop_marked()
        target = self._stack[-1]
        if type(target) is set:
            target.update(map(_key, values))
        elif type(target) is not Inert:
            raise Malformed("items for what is no set")

    def _frozen_set(self, _: Any) -> None:
        self._stack.append(frozenset(map(_key, self._pop_marked())))

    def _put(self, index: Any) -> None:
        self._remember(int(index))

    def _memoize(self, _: Any) -> None:
        self._remember(len(self._memo))

    def _remember(self, index: int) -> None:
        if not 0 <= index < _MAX_INDEX or self._stack[-1] is _MARK:
            raise Malformed(f"memo {index}")
        self._memo[index] = self._stack[-1]

    def _get(self, index: Any) -> None:
        self._stack.append(self._memo[int(index)])

    def _global(self, names: Any) -> None:
        module, _, name = names.partition(" ")
        self._stack.append(_Name(f"{module}.{name}"))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Malformed("a name that is no text")
        self._stack.append(_Name(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        # This is the instruction by which a malicious pickle runs code. Here it is a look-up in a
        # table.
        arguments, function = self._pop(), self._pop()
        self._stack.append(self._made(function, arguments))

    def _new_object_with_keywords(self, _: Any) -> None:
        # The keywords, which no function of the table needs.
        self._pop()
        self._reduce(None)

    def _instance(self, names: Any) -> None:
        arguments = self._pop_marked()
        self._global(names)
        self._stack.append(self._made(self._pop(), tuple(arguments)))

    def _object(self, _: Any) -> None:
        cls, *arguments = self._pop_marked()
        self._stack.append(self._made(cls, tuple(arguments)))

    def _made(self, function: Any, arguments: Any) -> Any:
        """What a call would return: the result of a pure function, or something inert."""
        if not isinstance(function, Inert):
            raise Malformed("a call of what is no function")
        # Only a name of the file itself may be called. An `Inert` that a call has returned may not,
        # whatever its kind says.
        pure = self._functions.get(function.kind) if type(function) is _Name else None
        if pure is None:
            return Inert(function.kind)
        if type(arguments) is not tuple:
            raise Malformed("arguments that are no tuple")
        return pure(*(self._resolved(a) for a in arguments))

    def _resolved(self, argument: Any) -> Any:
        """The argument of a call, where a known function may be the argument of another."""
        if type(argument) is _Name:
            return self._functions.get(argument.kind, argument)
        return argument

    def _build(self, _: Any) -> None:
        state = self._pop()
        target = self._stack[-1]
        # Python would call `__setstate__` or fill `__dict__` with values of the file's choice.
        builder = self._builders.get(type(target))
        if builder is not None:
            builder(target, state)

    def _persistent_id(self, text: Any) -> None:
        self._stack.append(self._persistent(text))

    def _persistent_object(self, _: Any) -> None:
        self._stack.append(self._persistent(self._pop()))


def _key(key: Any) -> Any:
    """`key` if hashing it takes no time, or else an `Inert` in its place."""
    if type(key) is tuple and all(_is_plain(part) for part in key):
        return key
    # Python's integers hash to themselves, so large ones could be chosen to collide, and tuples of
    # tuples take exponential time to hash where they share parts.
    return key if _is_plain(key) or isinstance(key, Inert) else Inert("key")


def _is_plain(value: Any) -> bool:
    """Whether a value is a string, a small number or the like, whose hashes rarely collide."""
    if isinstance(value, int):
        return -_MAX_KEY <= value < _MAX_KEY
    return value is None or type(value) in (str, bytes, float)


_HANDLERS: dict[str, Callable[[PickleMachine, Any], None]] = {
    "MARK": PickleMachine._mark,
    "POP": PickleMachine._drop,
    "POP_MARK": PickleMachine._drop_marked,
    "DUP": PickleMachine._duplicate,
    "PROTO": PickleMachine._check_protocol,
    "FRAME": PickleMachine._frame,
    "TUPLE": PickleMachine._tuple,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "LIST": PickleMachine._list,
    "APPEND": PickleMachine._append,
    "APPENDS": PickleMachine._appends,
    "DICT": PickleMachine._dict,
    "SETITEM": PickleMachine._set_item,
    "SETITEMS": PickleMachine._set_items,
    "ADDITEMS": PickleMachine._add_items,
    "FROZENSET": PickleMachine._frozen_set,
    "PUT": PickleMachine._put,
    "BINPUT": PickleMachine._put,
    "LONG_BINPUT": PickleMachine._put,
    "MEMOIZE": PickleMachine._memoize,
    "GET": PickleMachine._get,
    "BINGET": PickleMachine._get,
    "LONG_BINGET": PickleMachine._get,
    "GLOBAL": PickleMachine._global,
    "STACK_GLOBAL": PickleMachine._stack_global,
    "REDUCE": PickleMachine._reduce,
    "NEWOBJ": PickleMachine._reduce,
    "NEWOBJ_EX": PickleMachine._new_object_with_keywords,
    "INST": PickleMachine._instance,
    "OBJ": PickleMachine._object,
    "BUILD": PickleMachine._build,
    "PERSID": PickleMachine._persistent_id,
    "BINPERSID": PickleMachine._persistent_object,
}
