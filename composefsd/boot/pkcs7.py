"""One signature of an EFI executable: a PKCS#7 structure, what it says, and whether its signer has signed that.

    ContentInfo (PKCS#7)     SignedData of one signer, in DER, whose content is an
    SpcIndirectDataContent   what it is about (not looked at), and the algorithm and digest of the image

The signer signs attributes, one of which is the digest of the content.  Defined by Microsoft ("Windows Authenticode
Portable Executable Signature Format") and RFC 2315; what more there has to be for EDK II, its code tells
(`DxeImageVerificationLib.c`, `CryptAuthenticode.c`).
"""

import codecs
import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from asn1crypto import algos, cms, core, x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

NAME_LIMIT: Final = 300

_ALIGNMENT: Final = 8  # of the table that it stands in
_MODULUS_BITS: Final = range(1024, 16384 + 1)  # the upper bound is OpenSSL's
_ALGORITHM_AT: Final = 32
"""Where EDK II takes the hash algorithm from, without parsing: the first of the SignedData, as DER always has it."""

_SPC_INDIRECT_DATA: Final = "1.3.6.1.4.1.311.2.1.4"

_HASHES: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "sha1": hashes.SHA1,
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
_CURVES: Final[dict[str, type[ec.EllipticCurve]]] = {
    "secp256r1": ec.SECP256R1,
    "secp384r1": ec.SECP384R1,
    "secp521r1": ec.SECP521R1,
}
_SHORT: Final = {
    "common_name": "CN",
    "organization_name": "O",
    "organizational_unit_name": "OU",
    "country_name": "C",
    "state_or_province_name": "ST",
    "locality_name": "L",
    "email_address": "emailAddress",
}

# What asn1crypto raises on garbage: it parses when a field is looked at, and none of it is documented.
_GARBAGE: Final = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)

# A worker cannot import any more when it comes to signatures: have the library, and the encodings of names, now.
_ENCODING_NAMES: Final = ("ascii", "cp1252", "idna", "latin1", "punycode", "teletex", "utf-16-be", "utf-32-be")
_BACKEND: Final = backend
_ENCODINGS: Final = [codecs.lookup(name) for name in _ENCODING_NAMES]


class State(StrEnum):
    """What is known of a signature; only a good one may be of use."""

    GOOD = "good"
    DOES_NOT_FIT = "does-not-fit-the-file"
    BAD = "bad-signature"
    MALFORMED = "malformed"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature: the signer as it names itself, the SHA-256 of its certificate in hexadecimal, who issued that.

    problem tells in words why the state is not GOOD.  What could not be read is empty.  hash_algorithm is that of
    the image's digest, such as `sha256`.
    """

    state: State
    problem: str = ""
    subject: str = ""
    issuer: str = ""
    fingerprint: str = ""
    hash_algorithm: str = ""


class FlawError(Exception):
    """Why a signature is not good."""

    def __init__(self, state: State, problem: str) -> None:
        super().__init__(problem)
        self.state = state
        self.problem = problem


def malformed(problem: str) -> FlawError:
    """A flaw of that state."""
    return FlawError(State.MALFORMED, problem)


class _SpcAttribute(core.Sequence):  # type: ignore[misc]  # asn1crypto has no types
    _fields = [("type", core.ObjectIdentifier), ("value", core.Any, {"optional": True})]  # noqa: RUF012


class _SpcIndirectData(core.Sequence):  # type: ignore[misc]  # as above
    _fields = [("data", _SpcAttribute), ("message_digest", algos.DigestInfo)]  # noqa: RUF012


@dataclass(frozen=True, slots=True)
class Claim:
    """A signature and the digest that the image has to have; its state is GOOD while nothing speaks against it."""

    told: Signature
    digest: bytes = b""

    def flawed(self, error: FlawError) -> "Claim":
        """With the flaw, unless it has one already."""
        if self.told.state is not State.GOOD:
            return self
        return replace(self, told=replace(self.told, state=error.state, problem=error.problem))


UNREAD: Final = Claim(Signature(State.GOOD))
"""Of a signature of which nothing could be read yet."""


def examine(data: bytes) -> Claim:
    """What a signature says, after all checks but that of the image's digest; nothing is raised for it."""
    claim = UNREAD
    try:
        signed = _signed_data(data)
        signer = _only_signer(signed)
        claim = Claim(_told(claim.told, _certificate(signed, signer)))
        content, algorithm, digest = _content(signed)
        claim = Claim(replace(claim.told, hash_algorithm=algorithm), digest)
        _check_algorithm(data, signed, algorithm)
        _check_signer(signed, signer, content, algorithm)
    except FlawError as error:
        return claim.flawed(error)
    except _GARBAGE as error:
        return claim.flawed(malformed(f"it is no PKCS#7 signature: {_first_line(error)}"))
    return claim


def _signed_data(data: bytes) -> cms.SignedData:
    info = cms.ContentInfo.load(data)
    if info["content_type"].native != "signed_data":
        raise malformed("it is no PKCS#7 SignedData")
    rest = data[len(info.dump()) :]
    if len(rest) >= _ALIGNMENT or any(rest):
        raise malformed("there is something behind the PKCS#7 structure")
    return info["content"]


def _only_signer(signed: cms.SignedData) -> cms.SignerInfo:
    signers = signed["signer_infos"]
    if len(signers) != 1:
        raise malformed(f"it has {len(signers)} signers, not one")
    return signers[0]


def _certificate(signed: cms.SignedData, signer: cms.SignerInfo) -> x509.Certificate:
    wanted = signer["sid"]
    if wanted.name != "issuer_and_serial_number":
        raise FlawError(State.UNSUPPORTED, "its signer is not named by issuer and serial number")
    issuer, serial = wanted.chosen["issuer"].dump(), wanted.chosen["serial_number"].native
    for choice in signed["certificates"]:
        if choice.name == "certificate":
            body = choice.chosen["tbs_certificate"]
            if body["serial_number"].native == serial and body["issuer"].dump() == issuer:
                return choice.chosen
    raise malformed("the certificate of its signer is not in it")


def _told(told: Signature, certificate: x509.Certificate) -> Signature:
    body = certificate["tbs_certificate"]
    fingerprint = hashlib.sha256(certificate.dump()).hexdigest()
    return replace(told, subject=_name(body["subject"]), issuer=_name(body["issuer"]), fingerprint=fingerprint)


def _name(name: x509.Name) -> str:
    """A name as OpenSSL shows it: `C=DE, CN=Somebody`, in the order of the certificate."""
    pairs = ((pair["type"].native, pair["value"].native) for relative in name.chosen for pair in relative)
    return _plain(", ".join(f"{_SHORT.get(kind, kind)}={value}" for kind, value in pairs))


def _plain(text: str) -> str:
    """Text from a signature for people, on a terminal perhaps."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text[:NAME_LIMIT])


def _first_line(error: Exception) -> str:
    return _plain(str(error).partition("\n")[0])


def _content(signed: cms.SignedData) -> tuple[bytes, str, bytes]:
    """The bytes that are signed, without their DER header; algorithm and digest in them."""
    content = signed["encap_content_info"]
    if content["content_type"].dotted != _SPC_INDIRECT_DATA:
        raise malformed("it does not sign an executable")
    indirect = content["content"].parse(_SpcIndirectData)
    digest = indirect["message_digest"]
    algorithm = _supported(digest["digest_algorithm"])
    return indirect.contents, algorithm, digest["digest"].native


def _supported(algorithm: algos.DigestAlgorithm) -> str:
    name = str(algorithm["algorithm"].native)
    if name not in _HASHES:
        raise FlawError(State.UNSUPPORTED, f"it uses the hash algorithm {_plain(name)}")
    return name


def _check_algorithm(data: bytes, signed: cms.SignedData, algorithm: str) -> None:
    """Raises a flaw unless everybody takes this algorithm for that of the image: OpenSSL goes by the list, too."""
    names = [str(one["algorithm"].native) for one in signed["digest_algorithms"]]
    encoded = bytes(algos.DigestAlgorithmId(algorithm).contents)
    if names != [algorithm] or data[_ALGORITHM_AT : _ALGORITHM_AT + len(encoded)] != encoded:
        raise malformed(f"it does not say where firmware looks that its hash algorithm is {algorithm}")


def _check_signer(signed: cms.SignedData, signer: cms.SignerInfo, content: bytes, algorithm: str) -> None:
    """Raises a flaw unless the signer has signed the content."""
    if _supported(signer["digest_algorithm"]) != algorithm:
        raise malformed("it has one hash algorithm for the image, and another one for itself")
    _verify(_certificate(signed, signer), signer, _attributes(signer, content, algorithm), algorithm)


def _attributes(signer: cms.SignerInfo, content: bytes, algorithm: str) -> bytes:
    """What the signature is over: the attributes as a SET, after a look at what they say; the content without any."""
    attributes = signer["signed_attrs"]
    if isinstance(attributes, core.Void):
        return content
    values: dict[str, list[core.Asn1Value]] = {}
    for attribute in attributes:
        values.setdefault(attribute["type"].native, []).extend(attribute["values"])
    kinds, digests = values.get("content_type", []), values.get("message_digest", [])
    if [kind.dotted for kind in kinds] != [_SPC_INDIRECT_DATA] or len(digests) != 1:
        raise malformed("its signed attributes are not those of an executable's signature")
    if digests[0].native != hashlib.new(algorithm, content, usedforsecurity=False).digest():
        raise FlawError(State.BAD, "its signer has signed another digest of the image")
    return b"\x31" + bytes(attributes.dump()[1:])  # they stand under the tag [0], but are signed as a SET OF


def _verify(certificate: x509.Certificate, signer: cms.SignerInfo, data: bytes, algorithm: str) -> None:
    key = certificate["tbs_certificate"]["subject_public_key_info"]
    kind, made_with = key.algorithm, signer["signature_algorithm"].signature_algo
    signature, chosen = signer["signature"].native, _HASHES[algorithm]()
    try:
        if (kind, made_with) == ("rsa", "rsassa_pkcs1v15"):
            _rsa_key(key).verify(signature, data, padding.PKCS1v15(), chosen)
        elif (kind, made_with) == ("ec", "ecdsa"):
            _ec_key(key).verify(signature, data, ec.ECDSA(chosen))
        else:
            raise FlawError(State.UNSUPPORTED, f"it is made by {_plain(made_with)} with a key of type {_plain(kind)}")
    except InvalidSignature as error:
        raise FlawError(State.BAD, "it was not made with the key of the certificate in it") from error
    except (UnsupportedAlgorithm, InternalError) as error:
        raise FlawError(State.UNSUPPORTED, "the cryptographic library of this host does not check it") from error


def _rsa_key(key: x509.PublicKeyInfo) -> rsa.RSAPublicKey:
    numbers = key["public_key"].parsed
    modulus, exponent = numbers["modulus"].native, numbers["public_exponent"].native
    if modulus.bit_length() not in _MODULUS_BITS:
        raise FlawError(State.UNSUPPORTED, f"its key has {modulus.bit_length()} bits")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _ec_key(key: x509.PublicKeyInfo) -> ec.EllipticCurvePublicKey:
    form, curve = key.curve
    if form != "named" or curve not in _CURVES:
        raise FlawError(State.UNSUPPORTED, "its key is on a curve that is not supported")
    return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[curve](), key["public_key"].native)
