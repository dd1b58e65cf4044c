"""The handshake in another language, from docs/protocol.md alone: checks docs/protocol-vectors.txt, sections 1, 5 and 6.

    python3 server/tests/proofs.py docs/protocol-vectors.txt
"""

import hashlib
import hmac
import sys

KEY = bytes(range(32))
OPEN = bytes(32)
METHOD = "/memkv.v1.Kv/Get"
UNIX_MS = 1_700_000_000_000


def framed(*parts):
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def mac(key, *parts):
    return hmac.new(key, framed(*parts), hashlib.sha256).digest()


def xor(one, other):
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def space_id(**fields):
    parts = [part.encode() for name in sorted(fields) for part in (name, fields[name])]
    return hashlib.sha256(b"memkv-space-v1" + framed(*parts)).digest()[:16]


def transcript(identity=("", ""), channel=b"", key_required=True):
    versions = b"".join(number.to_bytes(4, "little") for number in (1, 2, 1, int(key_required)))
    parts = [versions, b"\x11" * 32, b"\x22" * 32, b"\x33" * 16, b"node-a"]
    label = b"memkv session transcript v1"
    if identity[0] or identity[1] or channel:
        label = b"memkv session transcript v2"
        parts += [identity[0].encode(), identity[1].encode(), channel]
    return hashlib.sha256(framed(label, *parts)).digest()


class Cluster:
    """Whoever has the cluster's key, or, with 32 zero bytes, a certificate."""

    def __init__(self, key, **said):
        self.key, self.transcript = key, transcript(**said)

    def server_proof(self):
        return mac(self.key, b"memkv session server v1", self.transcript)

    def client_proof(self):
        return mac(self.key, b"memkv session client v1", self.transcript)

    def session_key(self):
        return mac(self.key, b"memkv session key v1", self.transcript)

    def credential(self):
        proof = mac(self.key, b"memkv call v1", METHOD.encode(), str(UNIX_MS).encode(), b"\x44" * 16)
        return f"v1.{UNIX_MS}.{'44' * 16}.{proof.hex()}"


class Tenant:
    """Whoever has the key of a tenant."""

    def __init__(self, key, name, **said):
        base = mac(key, b"memkv tenant v1", name.encode())
        self.name, self.client_key, self.server_key = name, mac(base, b"client"), mac(base, b"server")
        self.stored_key = hashlib.sha256(framed(b"memkv stored key v1", self.client_key)).digest()
        self.key_id = mac(base, b"id")[:8].hex()
        self.transcript = transcript(identity=(name, self.key_id), **said)

    def verifier(self):
        return self.stored_key + self.server_key

    def server_proof(self):
        return mac(self.server_key, b"memkv session server v2", self.transcript)

    def client_proof(self):
        return xor(self.client_key, mac(self.stored_key, b"memkv session client v2", self.transcript))

    def session_key(self):
        return mac(self.client_key, b"memkv session key v2", self.transcript)

    def credential(self):
        said = (self.name, self.key_id, METHOD, str(UNIX_MS))
        mask = mac(self.stored_key, b"memkv call v2", *(text.encode() for text in said), b"\x44" * 16)
        return f"v2.{self.name}.{self.key_id}.{UNIX_MS}.{'44' * 16}.{xor(self.client_key, mask).hex()}"


def attach(session_key, channel=None):
    """The three messages of a data connection."""
    key = session_key if channel is None else mac(session_key, b"memkv attach channel v1", channel)
    said = (b"\x33" * 16, b"\x55" * 32, b"\x66" * 32)
    preface = b"MEMKV\0D1"
    hello = preface + b"\x01\0" + bytes(6) + said[0] + said[1]
    challenge = preface + b"\x01\0" + bytes(6) + said[2]
    challenge += mac(key, b"memkv attach server v1", *said) + bytes(32)
    return hello, challenge, mac(key, b"memkv attach client v1", *said)


def lines():
    """Every line that this program can compute, in the order of the file."""
    yield "1 space name=default", space_id(name="default").hex()
    yield (
        "1 space dtype=bf16 model=llama page_tokens=64",
        space_id(dtype="bf16", model="llama", page_tokens="64").hex(),
    )
    cluster = Cluster(KEY)
    yield "5 server proof", cluster.server_proof().hex()
    yield "5 client proof", cluster.client_proof().hex()
    yield f"5 credential for {METHOD} at {UNIX_MS} with nonce 16 times 44", cluster.credential()
    inside = Cluster(KEY, channel=b"\x77" * 32)
    yield "5 server proof inside TLS, channel 32 times 77", inside.server_proof().hex()
    yield "5 client proof inside TLS", inside.client_proof().hex()
    certified = Cluster(OPEN, channel=b"\x77" * 32, key_required=False)
    yield "5 server proof inside TLS to a certificate, no key required", certified.server_proof().hex()
    yield "5 client proof of a certificate", certified.client_proof().hex()
    tenant = Tenant(KEY, "search")
    yield "5 with the same key as that of tenant search, key id", tenant.key_id
    yield "5 verifier of tenant search", tenant.verifier().hex()
    yield "5 server proof to tenant search", tenant.server_proof().hex()
    yield "5 client proof of tenant search", tenant.client_proof().hex()
    yield f"5 credential of tenant search for {METHOD} at {UNIX_MS} with nonce 16 times 44", tenant.credential()
    secured = Tenant(KEY, "search", channel=b"\x77" * 32)
    yield "5 server proof to tenant search inside TLS, channel 32 times 77", secured.server_proof().hex()
    yield "5 client proof of tenant search inside TLS", secured.client_proof().hex()
    for step, message in enumerate(attach(cluster.session_key()), 1):
        yield f"6 step {step}", message.hex()
    for step, message in enumerate(attach(tenant.session_key()), 1):
        if step > 1:
            yield f"6 step {step} in a session of tenant search", message.hex()
    for step, message in enumerate(attach(secured.session_key(), b"\x88" * 32), 1):
        if step > 1:
            yield f"6 step {step} in its session inside TLS, on a connection with channel 32 times 88", message.hex()


def check(text):
    """Compares with the file; says how many lines agree."""
    said = dict(line.rsplit(": ", 1) for line in text.splitlines() if ": " in line and not line.endswith(":"))
    agreed = 0
    for what, value in lines():
        if said.get(what) != value:
            sys.exit(f"{what}: the file has {said.get(what)}, and it is {value}")
        agreed += 1
    return agreed


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as vectors:
        print(check(vectors.read()), "lines agree")
