"""Rules of a policy that only PCRE2 can read: look-around, back references, possessive repetition, recursion.

composefs-rs 0.9.4 gives a pattern that Rust's regex syntax refuses to the library PCRE2, by way of the crate `pcre2`:
as bytes, without options and without its just-in-time compiler.  So do we, with the library that libselinux brings to
every Debian.  A search that PCRE2 gives up, after ten million steps, is one without a match there, and is so here.

The library may be older than the one that composefs-rs brings, 10.46.  What that one may read in another way is
refused then, rather than given another label.

API: pcre2api(3), the numbers are those of pcre2.h.  The library is loaded on import, before a worker has no files.
"""

import ctypes
import re
import weakref
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from typing import Final

from composefsd.errors import FormatError, UnsupportedError

_LIBRARY: Final = "libpcre2-8.so.0"
_REFERENCE: Final = (10, 46)
_COUNT_FROM_ZERO: Final = (10, 43), re.compile(r"\{,[0-9]")  # `{,3}` is a repetition since then
_NEW_SYNTAX: Final = {111, 125, 148, 160}  # unknown group, look-behind of no fixed length, long name, unknown verb

_CONFIG_VERSION: Final = 11
_NEWLINE_LF: Final = 2
_BSR_UNICODE: Final = 1
_NEST_LIMIT: Final = 250  # these four are what composefs-rs's build has by default
_MATCH_LIMIT: Final = 10_000_000
_DEPTH_LIMIT: Final = 10_000_000
_HEAP_LIMIT: Final = 20_000_000  # KiB
_NO_MEMORY: Final = -48
_NO_MEMORY_TO_COMPILE: Final = 121


class _Pcre2:
    """The library with the contexts that each pattern is compiled and matched in."""

    def __init__(self, library: ctypes.CDLL) -> None:
        _declare(library)
        self._library = library
        self.version = self._version()
        self._compiling = library.pcre2_compile_context_create_8(None)
        self._matching = library.pcre2_match_context_create_8(None)
        if not self._compiling or not self._matching:
            raise MemoryError
        library.pcre2_set_newline_8(self._compiling, _NEWLINE_LF)
        library.pcre2_set_bsr_8(self._compiling, _BSR_UNICODE)
        library.pcre2_set_parens_nest_limit_8(self._compiling, _NEST_LIMIT)
        library.pcre2_set_match_limit_8(self._matching, _MATCH_LIMIT)
        library.pcre2_set_depth_limit_8(self._matching, _DEPTH_LIMIT)
        library.pcre2_set_heap_limit_8(self._matching, _HEAP_LIMIT)

    def _version(self) -> tuple[int, int]:
        """Of a text such as `10.42 2022-12-11`."""
        text = ctypes.create_string_buffer(64)
        self._library.pcre2_config_8(_CONFIG_VERSION, text)
        major, minor = re.findall(r"[0-9]+", text.value.decode())[:2]
        return int(major), int(minor)

    def compile(self, text: bytes) -> int:
        """The address of a compiled pattern.  Raises FormatError or UnsupportedError in the words of PCRE2."""
        error, offset = c_int(), c_size_t()
        code: int | None = self._library.pcre2_compile_8(
            text, len(text), 0, byref(error), byref(offset), self._compiling
        )
        if code is None:
            raise self._refusal(error.value, offset.value)
        return code

    def _refusal(self, number: int, offset: int) -> Exception:
        if number == _NO_MEMORY_TO_COMPILE:
            return MemoryError()
        text = ctypes.create_string_buffer(256)
        self._library.pcre2_get_error_message_8(number, text, len(text))
        message = f"{text.value.decode()} at byte {offset}"
        if number in _NEW_SYNTAX and self.version < _REFERENCE:
            return UnsupportedError(
                f"{message}, says PCRE2 {self.version[0]}.{self.version[1]}, a newer one might not"
            )
        return FormatError(message, offset=offset)

    def memory_for(self, code: int) -> int:
        """The address of a block to match a pattern with."""
        data: int | None = self._library.pcre2_match_data_create_from_pattern_8(code, None)
        if data is None:
            raise MemoryError
        return data

    def matches(self, code: int, data: int, subject: bytes) -> bool:
        found: int = self._library.pcre2_match_8(code, subject, len(subject), 0, 0, data, self._matching)
        if found == _NO_MEMORY:  # not a verdict: with more memory there would be one
            raise MemoryError
        return found > 0

    def free(self, code: int, data: int) -> None:
        self._library.pcre2_match_data_free_8(data)
        self._library.pcre2_code_free_8(code)


def _declare(library: ctypes.CDLL) -> None:
    """Tell ctypes the types of the functions that are used here."""
    pointers = {
        "pcre2_compile_context_create_8": [c_void_p],
        "pcre2_match_context_create_8": [c_void_p],
        "pcre2_match_data_create_from_pattern_8": [c_void_p, c_void_p],
        "pcre2_compile_8": [c_char_p, c_size_t, c_uint32, POINTER(c_int), POINTER(c_size_t), c_void_p],
    }
    numbers = {
        "pcre2_config_8": [c_uint32, c_void_p],
        "pcre2_get_error_message_8": [c_int, c_char_p, c_size_t],
        "pcre2_match_8": [c_void_p, c_char_p, c_size_t, c_size_t, c_uint32, c_void_p, c_void_p],
        **{f"pcre2_set_{what}_8": [c_void_p, c_uint32] for what in ("newline", "bsr", "parens_nest_limit")},
        **{f"pcre2_set_{what}_limit_8": [c_void_p, c_uint32] for what in ("match", "depth", "heap")},
    }
    for results, functions in ((c_void_p, pointers), (c_int, numbers)):
        for name, arguments in functions.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, results
    for name in ("pcre2_code_free_8", "pcre2_match_data_free_8"):
        function = getattr(library, name)
        function.argtypes, function.restype = [c_void_p], None


def _load() -> _Pcre2 | None:
    try:
        return _Pcre2(ctypes.CDLL(_LIBRARY))
    except OSError:  # told to those who need it
        return None


_pcre2: Final = _load()


class Pattern:
    """A compiled pattern, for subjects that are a path with the letter of its type behind."""

    def __init__(self, library: _Pcre2, text: bytes) -> None:
        """Raises FormatError or UnsupportedError."""
        self._library = library
        self._code = library.compile(text)
        self._data = library.memory_for(self._code)
        weakref.finalize(self, library.free, self._code, self._data)

    def matches(self, subject: bytes) -> bool:
        """Whether PCRE2 finds a match; False if it gives up.  Raises MemoryError if it finds too little of that."""
        return self._library.matches(self._code, self._data, subject)


def compile_rule(text: str) -> Pattern:
    """The pattern of a rule, as composefs-rs puts it together: anchored, with a letter for the type.

    Raises FormatError for what PCRE2 refuses, and UnsupportedError if there is no library, or if it is too old to
    tell what a newer one makes of the pattern.
    """
    if _pcre2 is None:
        raise UnsupportedError(f"a regular expression of a policy needs PCRE2: {_LIBRARY} cannot be loaded")
    since, changed = _COUNT_FROM_ZERO
    if _pcre2.version < since and changed.search(text):
        raise UnsupportedError("PCRE2 reads `{,` in a regular expression of a policy in another way since 10.43")
    return Pattern(_pcre2, text.encode())
