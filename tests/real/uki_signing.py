"""Authenticode signatures for tests, right ones and wrong ones; sbsign's are of the right kind alone.

The digest is computed in another way than composefsd does: over the file as it lies, which is the same for a file
whose sections follow each other without gaps.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from struct import pack, pack_into, unpack_from
from typing import Any, Final

from asn1crypto import algos, cms, core, x509
from cryptography import x509 as certificates
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

SPC_INDIRECT_DATA: Final = "1.3.6.1.4.1.311.2.1.4"
_SPC_PE_IMAGE: Final = "1.3.6.1.4.1.311.2.1.15"
_HASHES: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "sha1": hashes.SHA1,
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
_ALIGNMENT: Final = 8


@dataclass(frozen=True, slots=True)
class Signer:
    """A key with a certificate that it signed itself, in DER."""

    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    certificate: bytes

    def sign(self, data: bytes, algorithm: str) -> bytes:
        chosen = _HASHES[algorithm]()
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, padding.PKCS1v15(), chosen)
        return self.key.sign(data, ec.ECDSA(chosen))

    @property
    def method(self) -> str:
        return "rsassa_pkcs1v15" if isinstance(self.key, rsa.RSAPrivateKey) else "sha256_ecdsa"


@cache
def signer(name: str = "somebody", kind: str = "rsa", attribute: ObjectIdentifier = NameOID.COMMON_NAME) -> Signer:
    """The same one for the same name; kind is `rsa` or `ec`, attribute what the name is."""
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)
    subject = certificates.Name([certificates.NameAttribute(attribute, name)])
    now = datetime.now(UTC)
    builder = certificates.CertificateBuilder().subject_name(subject).issuer_name(subject)
    builder = builder.public_key(key.public_key()).serial_number(certificates.random_serial_number())
    made = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    return Signer(key, made.public_bytes(Encoding.DER))


class _SpcAttribute(core.Sequence):  # type: ignore[misc]  # asn1crypto has no types
    _fields = [("type", core.ObjectIdentifier), ("value", core.Any, {"optional": True})]  # noqa: RUF012


class _SpcIndirectData(core.Sequence):  # type: ignore[misc]  # as above
    _fields = [("data", _SpcAttribute), ("message_digest", algos.DigestInfo)]  # noqa: RUF012


class _SpcContentInfo(core.Sequence):  # type: ignore[misc]  # as above
    _fields = [("content_type", core.ObjectIdentifier), ("content", _SpcIndirectData, {"explicit": 0})]  # noqa: RUF012


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a signature is made; the defaults make a right one."""

    algorithm: str = "sha256"
    signer_algorithm: str = ""
    content_type: str = SPC_INDIRECT_DATA
    signed_type: str = SPC_INDIRECT_DATA
    attributes: bool = True
    attribute_digest: bytes = b""
    signers: int = 1
    with_certificate: bool = True
    method: str = ""
    trailer: bytes = b""
    listed: tuple[str, ...] | None = None


def pkcs7(who: Signer, digest: bytes, recipe: Recipe = Recipe()) -> bytes:
    """A PKCS#7 structure in DER that signs the digest of an image."""
    content = _SpcIndirectData(
        {
            "data": {"type": _SPC_PE_IMAGE},
            "message_digest": {"digest_algorithm": {"algorithm": recipe.algorithm}, "digest": digest},
        }
    )
    wrapped = _SpcContentInfo({"content_type": recipe.content_type, "content": content}).dump()
    signed = {
        "version": "v1",
        "digest_algorithms": [{"algorithm": name} for name in _listed(recipe)],
        "encap_content_info": cms.ContentInfo.load(wrapped),
        "signer_infos": [_signer_info(who, _SpcIndirectData.load(content.dump()).contents, recipe)] * recipe.signers,
    }
    if recipe.with_certificate:
        signed["certificates"] = [cms.CertificateChoices("certificate", x509.Certificate.load(who.certificate))]
    info = cms.ContentInfo({"content_type": "signed_data", "content": cms.SignedData(signed)})
    return bytes(info.dump()) + recipe.trailer


def _listed(recipe: Recipe) -> tuple[str, ...]:
    return (recipe.algorithm,) if recipe.listed is None else recipe.listed


def _signer_info(who: Signer, content: bytes, recipe: Recipe) -> dict[str, Any]:
    algorithm = recipe.signer_algorithm or recipe.algorithm
    body = x509.Certificate.load(who.certificate)["tbs_certificate"]
    name = {"issuer": body["issuer"], "serial_number": body["serial_number"]}
    made: dict[str, Any] = {
        "version": "v1",
        "sid": cms.SignerIdentifier("issuer_and_serial_number", name),
        "digest_algorithm": {"algorithm": algorithm},
        "signature_algorithm": {"algorithm": recipe.method or who.method},
        "signature": who.sign(content, algorithm),
    }
    if recipe.attributes:
        digest = recipe.attribute_digest or hashlib.new(algorithm, content).digest()
        attributes = cms.CMSAttributes(
            [
                {"type": "content_type", "values": [recipe.signed_type]},
                {"type": "message_digest", "values": [digest]},
            ]
        )
        made["signed_attrs"] = attributes
        made["signature"] = who.sign(attributes.dump(), algorithm)
    return made


def entry(data: bytes, *, revision: int = 0x0200, kind: int = 2, length: int | None = None) -> bytes:
    """An entry of a certificate table, padded."""
    length = 8 + len(data) if length is None else length
    return _padded(pack("<IHH", length, revision, kind) + data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)


def directory_at(executable: bytes) -> int:
    """Where a PE32+ file has the directory entry of its certificate table."""
    return int(unpack_from("<I", executable, 0x3C)[0]) + 24 + 112 + 4 * 8


def with_table(executable: bytes, table: bytes, size_bytes: int | None = None) -> bytes:
    """An unsigned PE32+ file with a certificate table; size_bytes is what its directory says of it."""
    made = bytearray(_padded(executable))
    pack_into("<II", made, directory_at(executable), len(made), len(table) if size_bytes is None else size_bytes)
    return bytes(made) + table


def image_digest(executable: bytes, algorithm: str = "sha256") -> bytes:
    """The digest that a signature of an unsigned PE32+ file has to have."""
    at, data = directory_at(executable), _padded(executable)
    checksum = at - 4 * 8 - 112 + 64
    return hashlib.new(algorithm, data[:checksum] + data[checksum + 4 : at] + data[at + 8 :]).digest()


def sign(executable: bytes, *signers: Signer, recipes: Sequence[Recipe] = ()) -> bytes:
    """An executable signed by each signer, with the recipes in turn."""
    entries = []
    for number, who in enumerate(signers):
        recipe = recipes[number] if number < len(recipes) else Recipe()
        entries.append(entry(pkcs7(who, image_digest(executable, recipe.algorithm), recipe)))
    return with_table(executable, b"".join(entries))
