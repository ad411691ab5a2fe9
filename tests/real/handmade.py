"""A tiny hand-made image for machines where no Debian can be built: right in form, but nothing in it runs.

Its UKI is a PE file of sections alone: the kernel and the initrd in it are a line of text each.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Final

from real.layers import directory, hard_link, opaque, regular, symlink, tar_layer, whiteout

KERNEL_VERSION: Final = "0.0.0-handmade"
_OS_RELEASE: Final = (
    b'ID=handmade\nNAME="Hand-made demo"\nPRETTY_NAME="Hand-made demo, boots nothing"\nVERSION_ID=1\n'
)
_CONTEXTS: Final = b"/.*\tsystem_u:object_r:default_t:s0\n/usr(/.*)?\tsystem_u:object_r:usr_t:s0\n"
_MODULES: Final = f"usr/lib/modules/{KERNEL_VERSION}"
_FILE_ALIGNMENT: Final = 512
_SECTION_ALIGNMENT: Final = 4096
_X86_64: Final = 0x8664
_EFI_APPLICATION: Final = 10


def layers() -> Iterator[bytes]:
    """The plain tars of an image of three layers, without a UKI."""
    folders = ("boot", "dev", "etc", "etc/selinux", "etc/selinux/demo", "proc", "run", "sys", "sysroot", "usr", "var")
    deeper = ("etc/selinux/demo/contexts", "etc/selinux/demo/contexts/files", "usr/bin", "usr/lib", "usr/lib/modules")
    yield tar_layer(
        (
            *(directory(path) for path in (*folders, *deeper)),
            regular("etc/selinux/config", b"SELINUX=permissive\nSELINUXTYPE=demo\n"),
            regular("etc/selinux/demo/contexts/files/file_contexts", _CONTEXTS),
            regular("usr/lib/os-release", _OS_RELEASE),
            symlink("etc/os-release", "../usr/lib/os-release"),
            regular("usr/bin/tool", b"not a program\n" * 100, mode=0o755),
            regular("usr/bin/obsolete", b"not a program either\n" * 100, mode=0o755),
        )
    )
    kernel, initrd = b"not a kernel\n" * 1000, b"not an initrd\n" * 1000
    files = (regular(f"{_MODULES}/vmlinuz", kernel), regular(f"{_MODULES}/initramfs.img", initrd))
    yield tar_layer((directory(_MODULES), *files))
    linked = hard_link("usr/bin/same-tool", "usr/bin/tool")
    yield tar_layer(
        (whiteout("usr/bin/obsolete"), linked, directory("var"), opaque("var"), regular("etc/motd", b"hello\n"))
    )


def uki(cmdline: str, initrd: bytes = b"not an initrd\n") -> bytes:
    """A UKI that can be read, but not be run."""
    return pe_file(
        {
            ".osrel": _OS_RELEASE,
            ".cmdline": cmdline.encode(),
            ".uname": KERNEL_VERSION.encode(),
            ".initrd": initrd,
            ".linux": b"not a kernel\n",
        }
    )


def _padded(data: bytes, alignment: int = _FILE_ALIGNMENT) -> bytes:
    return data + bytes(-len(data) % alignment)


def pe_file(sections: Mapping[str, bytes]) -> bytes:
    """A PE32+ file of an x86-64 EFI application with these sections, by Microsoft's PE format specification."""
    dos = b"MZ" + bytes(58) + struct.pack("<I", 64)
    coff = struct.pack("<HHIIIHH", _X86_64, len(sections), 0, 0, 0, 240, 0x22E)
    headers_end = 64 + 4 + len(coff) + 240 + 40 * len(sections)
    file_offset = headers_bytes = headers_end + -headers_end % _FILE_ALIGNMENT
    address, table, content = _SECTION_ALIGNMENT, b"", b""
    for name, data in sections.items():
        raw = _padded(data)
        place = struct.pack("<IIII", len(data), address, len(raw), file_offset)
        table += name.encode().ljust(8, b"\0") + place + struct.pack("<IIHHI", 0, 0, 0, 0, 0x40000040)
        content += raw
        file_offset += len(raw)
        address += len(_padded(data, _SECTION_ALIGNMENT))
    optional = struct.pack("<HBBIIIII", 0x20B, 14, 0, 0, len(content), 0, 0, 0)
    optional += struct.pack("<QIIHHHHHHI", 0, _SECTION_ALIGNMENT, _FILE_ALIGNMENT, 0, 0, 0, 0, 0, 0, 0)
    optional += struct.pack("<IIIHHQQQQII", address, headers_bytes, 0, _EFI_APPLICATION, 0, 0, 0, 0, 0, 0, 16)
    return _padded(dos + b"PE\0\0" + coff + optional + bytes(128) + table) + content
