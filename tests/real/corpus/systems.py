"""What makes an image boot or not: directories, SELinux policies, kernels, UKIs."""

import struct
from typing import Final

from real import handmade
from real.corpus.case import Case, Piece, Verdict, image_case, layout_case, tar
from real.layers import directory, fifo, hard_link, regular, symlink, whiteout
from real.oci_layout import Layout

_VERSION: Final = "usr/lib/modules/6.1"
_KERNEL: Final = (
    directory("usr/lib/modules"),
    directory(_VERSION),
    regular(f"{_VERSION}/vmlinuz", b"kernel" * 50),
    regular(f"{_VERSION}/initramfs.img", b"initrd" * 50),
)
_LABELLED: Final = (
    regular("usr/a", b"x" * 100, xattrs={"security.selinux": b"stale", "user.foo": b"bar"}),
    regular("etc/shadow", b"q"),
    regular("etc/passwd", b"q"),
    symlink("bin", "usr/bin"),
    directory("dev"),
    fifo("dev/p"),
    directory("var"),
    directory("var/home"),
    regular("var/home/u", b"u"),
    regular("home", b"not a directory"),
    hard_link("etc/linked", "usr/a"),
)


def _policy(
    rules: bytes, *, config: bytes = b"SELINUXTYPE=p\n", folder: str = "p", **others: bytes
) -> tuple[Piece, ...]:
    """A policy: `file_contexts`, and further files by the ends of their names."""
    path, folders = "etc/selinux", [directory("etc/selinux")]
    for part in (*filter(None, folder.split("/")), "contexts", "files"):
        path += f"/{part}"
        folders.append(directory(path))
    files = (regular(f"{path}/file_contexts.{name}", content) for name, content in others.items())
    return (*folders, regular("etc/selinux/config", config), regular(f"{path}/file_contexts", rules), *files)


def _labelled(name: str, rules: bytes, **options: object) -> Case:
    return image_case(name, (*_LABELLED, *_policy(rules, **options)))  # type: ignore[arg-type]  # options of _policy


def _unbootable(name: str, *pieces: Piece, says: str) -> Case:
    return image_case(name, pieces, ours=Verdict.NORMATIVE, says=says)


def _folders(*names: str) -> tuple[Piece, ...]:
    return tuple(directory(name, mtime_sec=number) for number, name in enumerate(names))


def _bare(name: str, *pieces: Piece, ours: Verdict = Verdict.IMAGES, says: str = "") -> Case:
    """An image of nothing but these pieces."""

    def make(layout: Layout) -> None:
        layout.add_image("image", [tar([*pieces, regular("case", name.encode())])])

    return layout_case(name, make, ours=ours, says=says)


_DIRECTORIES: Final = (
    _bare("no /usr", *_folders("boot", "sysroot"), ours=Verdict.REFUSED, says="/usr"),
    _bare(
        "/usr as a symbolic link",
        *_folders("boot", "sysroot"),
        symlink("usr", "boot"),
        ours=Verdict.REFUSED,
        says="/usr",
    ),
    _bare("/usr as a file", *_folders("boot", "sysroot"), regular("usr"), ours=Verdict.REFUSED, says="/usr"),
    _bare("no /boot", *_folders("usr", "sysroot"), ours=Verdict.NORMATIVE, says="boot"),
    _bare("no /sysroot", *_folders("usr", "boot"), ours=Verdict.NORMATIVE, says="sysroot"),
    _bare("/boot as a file", *_folders("usr", "sysroot"), regular("boot"), ours=Verdict.NORMATIVE, says="boot"),
    _bare(
        "/boot as a symbolic link",
        *_folders("usr", "sysroot"),
        symlink("boot", "usr"),
        ours=Verdict.NORMATIVE,
        says="boot",
    ),
    _bare("/sysroot as a file", *_folders("usr", "boot"), regular("sysroot"), ours=Verdict.NORMATIVE, says="sysroot"),
    _bare("/run as a file", *_folders("usr", "boot", "sysroot"), regular("run"), ours=Verdict.REFUSED, says="/run"),
    _bare(
        "/run as a symbolic link",
        *_folders("usr", "boot", "sysroot"),
        symlink("run", "usr"),
        ours=Verdict.REFUSED,
        says="/run",
    ),
    _bare("no /run", *_folders("usr", "boot", "sysroot")),
    image_case("/boot deleted by a later layer", (), (whiteout("boot"),), ours=Verdict.NORMATIVE, says="boot"),
)

_POLICIES: Final = (
    _labelled(
        "a policy",
        b"# comment\n\n/.* all\n/usr(/.*)? usr\n/ -d root\n/etc/passwd <<none>>\n/dev/.* -p pipe\n/bin -l link\n",
    ),
    _labelled("a policy that labels nothing", b"/none n\n"),
    _labelled("an empty policy", b""),
    _labelled(
        "rules in three files",
        b"/etc/a pat\n/etc/.* first\n",
        local=b"/etc/passwd local\n/usr/a local\n",
        homedirs=b"/usr/a home\n",
    ),
    _labelled(
        "substitutions",
        b"/.* all\n/home(/.*)? home\n/srv/x srv\n/dev// two\n",
        subs=b"/var/home /home\n/usr /srv/x\n",
        subs_dist=b"/dev /dev//\n/var/home /ignored\n",
    ),
    _labelled(
        "a policy of several",
        b"/.* p\n",
        config=b"# SELINUXTYPE=q\nSELINUX=enforcing\nSELINUXTYPE=p\nSELINUXTYPE=q\n",
    ),
    _labelled(
        "patterns that only PCRE2 knows",
        b"/.* all\n/etc/(?!shadow).* not-shadow\n/usr/(?=a)a ahead\n/(?>usr)/a atomic\n/var/home/(?<=e/)u behind\n",
    ),
    _labelled("a pattern that recurses", b"/.* all\n/(e(?2)?tc|x)/p.* l\n/(?=u)usr/(a(?1)?|b) again\n"),
    _labelled("a pattern that closes the group around it", b"/.* all\n/etc)|(/usr/a l\n"),
    image_case(
        "a pattern in Unicode mode",
        (*_LABELLED, *_policy(rb"/.* all" b"\n" rb"(?u)/etc/\w+ l" b"\n")),
        ours=Verdict.NORMATIVE,
        theirs=Verdict.IMAGES,
        says=r"Unicode mode",
        why="Policies are matched as bytes; we have no tables of Unicode.",
    ),
    _labelled(
        "patterns of many kinds",
        rb"/[^/]+/[[:alpha:]]+ word"
        b"\n"
        rb"/usr/\w\b.* word"
        b"\n"
        rb"/\x65tc/.{5,7} short"
        b"\n"
        rb"/(usr|etc)/a{1,2} a"
        b"\n",
    ),
    _labelled("no name of a policy", b"/.* nameless\n", config=b"SELINUXTYPE=\n", folder=""),
    _labelled("a policy in folders", b"/.* deep\n", config=b"SELINUXTYPE=a//./b/\n", folder="a/b"),
    image_case(
        "a configuration that names no policy",
        (*_LABELLED, directory("etc/selinux"), regular("etc/selinux/config", b"SELINUX=disabled\n")),
    ),
    image_case(
        "a folder of policies without a configuration",
        (*_LABELLED, directory("etc/selinux"), regular("etc/selinux/x")),
    ),
    image_case("labels of an image without a policy", _LABELLED),
    image_case(
        "a hard link between files of different labels",
        (
            regular("etc/a", b"x" * 100),
            hard_link("usr/a", "etc/a"),
            hard_link("usr/b", "etc/a"),
            hard_link("boot/c", "etc/a"),
            hard_link("z", "etc/a"),
            *_policy(b"/.* all\n/usr/.* usr\n/etc/a <<none>>\n"),
        ),
    ),
    _unbootable(
        "a policy without its file of contexts",
        *_policy(b"")[:-1],
        regular("etc/selinux/p/contexts/files/file_contexts.local", b"/.* local\n"),
        says="no file_contexts",
    ),
    _unbootable(
        "a policy that is not there",
        directory("etc/selinux"),
        regular("etc/selinux/config", b"SELINUXTYPE=p\n"),
        says="p",
    ),
    _unbootable("a policy behind `..`", *_policy(b"/.* l\n", config=b"SELINUXTYPE=a/../p\n"), says=r"\.\."),
    _unbootable(
        "a configuration that is a link", directory("etc/selinux"), symlink("etc/selinux/config", "x"), says="config"
    ),
    _unbootable(
        "a configuration that is not UTF-8", *_policy(b"/.* l\n", config=b"SELINUXTYPE=\xff\n"), says="config"
    ),
    _unbootable("rules that are not UTF-8", *_policy(b"/\xff l\n"), says="file_contexts"),
    _unbootable("a rule without a context", *_policy(b"/a\n"), says="file_contexts"),
    _unbootable("a rule of an unknown type", *_policy(b"/a -x l\n"), says="file_contexts"),
    _unbootable("a rule with more than a context", *_policy(b"/a -- l m\n"), says="file_contexts"),
    _unbootable("a broken pattern", *_policy(b"/.* all\n/( l\n"), says=r"/\("),
    _unbootable("a substitution of nothing", *_policy(b"/.* l\n", subs=b"/a\n"), says="subs"),
    _unbootable(
        "/etc as a symbolic link to a policy",
        directory("usr/etc"),
        whiteout("etc"),
        symlink("etc", "usr/etc"),
        says="etc",
    ),
)


def _entry(content: bytes) -> tuple[Piece, ...]:
    return (
        *_KERNEL,
        directory("boot/loader"),
        directory("boot/loader/entries"),
        regular("boot/loader/entries/a.conf", content),
    )


def _efi(*pieces: Piece) -> tuple[Piece, ...]:
    return (directory("boot/EFI"), directory("boot/EFI/Linux"), *pieces)


_UKI: Final = handmade.uki("quiet composefs=" + "a" * 128)
_ANDROID: Final = struct.pack("<8s28xII1600xI12x", b"ANDROID!", 2048, 2, 1660) + b"x" * 100
_LINUX: Final = f"linux /{_VERSION}/vmlinuz\n".encode()

_BOOT: Final = (
    image_case("a kernel and its initrd", _KERNEL),
    image_case(
        "a kernel without an initrd, and one that is a link",
        (*_KERNEL[:3], directory("usr/lib/modules/6.2"), symlink("usr/lib/modules/6.2/vmlinuz", "x")),
    ),
    image_case(
        "a boot entry",
        _entry(
            b"title x\n" + _LINUX + f"initrd\t {_VERSION}//./initramfs.img/\n".encode() + b"uki /none\n linux /none\n"
        ),
    ),
    image_case(
        "UKIs and addons",
        _efi(
            regular("boot/EFI/Linux/a.efi", _UKI),
            directory("boot/EFI/Linux/a.efi.extra.d"),
            regular("boot/EFI/Linux/a.efi.extra.d/b.addon.efi", handmade.pe_file({".cmdline": b"x"})),
        ),
    ),
    image_case("a UKI that is none", _efi(regular("boot/EFI/Linux/a.efi", b"not a PE file" * 20))),
    image_case("a UKI beside the modules", (*_KERNEL, regular(f"{_VERSION}/6.1.efi", _UKI))),
    image_case("an Android payload", (regular("boot/aboot-6.1.img", _ANDROID), regular("boot/vbmeta-6.1.img", b"v"))),
    image_case("an Android payload that is a UKI", (regular("boot/aboot-6.1.img", _UKI),)),
    image_case(
        "other files in /boot",
        (regular("boot/aboot.img", b"x"), regular("boot/vbmeta.img", b"x"), regular("boot/vmlinuz-6.1", b"k")),
    ),
    _unbootable("a boot entry of a missing kernel", *_entry(b"linux /vmlinuz\n"), says="a.conf.*vmlinuz"),
    _unbootable("a boot entry of a missing directory", *_entry(b"linux /x/vmlinuz\n"), says="a.conf"),
    _unbootable(
        "a boot entry of a kernel with a space behind", *_entry(_LINUX.replace(b"\n", b" \n")), says="a.conf"
    ),
    _unbootable("a boot entry through `..`", *_entry(b"linux /usr/.." + _LINUX[6:]), says="a.conf"),
    _unbootable("a boot entry that is not UTF-8", *_entry(b"\xff"), says="a.conf"),
    _unbootable(
        "a boot entry that is a link", *_entry(b"")[:-1], symlink("boot/loader/entries/a.conf", "x"), says="a.conf"
    ),
    _unbootable(
        "boot entries that are a file", directory("boot/loader"), regular("boot/loader/entries"), says="entries"
    ),
    _unbootable("a UKI that is a link", *_efi(symlink("boot/EFI/Linux/a.efi", "b")), says="a.efi"),
    _unbootable("a directory of UKIs that is a link", symlink("boot/EFI", "b"), says="EFI"),
    _unbootable("a file of modules", regular("usr/lib/modules"), says="modules"),
    _unbootable("an Android payload that is none", regular("boot/aboot-6.1.img", b"x" * 100), says="aboot-6.1.img"),
    _unbootable(
        "two Android payloads",
        regular("boot/aboot-6.1.img", _ANDROID),
        regular("boot/aboot-6.2.img", _ANDROID),
        says="more than one",
    ),
    _unbootable(
        "an Android payload beside a kernel", *_KERNEL, regular("boot/aboot-6.1.img", _ANDROID), says="beside"
    ),
    _unbootable("an Android payload without a version", regular("boot/aboot-.img", _ANDROID), says="version"),
    _unbootable("a vbmeta without a payload", regular("boot/vbmeta-6.1.img", b"v"), says="vbmeta-6.1.img"),
)

CASES: Final[tuple[Case, ...]] = (*_DIRECTORIES, *_POLICIES, *_BOOT)
