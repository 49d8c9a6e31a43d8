#!/usr/bin/env python3
"""Makes a JSON web token, signed by an RSA key: gen-jwt.py key.pem --expire 300 --claims foo:bar

The options are those of Istio's script of this name. Needs openssl, and nothing but Python's standard library.
"""
import argparse
import base64
import hashlib
import json
import subprocess
import time


def text(data):
    """Base64 as web tokens have it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(value):
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def openssl(*args, data=None):
    return subprocess.run(["openssl", *args], input=data, check=True, capture_output=True).stdout


def public(pem):
    """The key's public part as a JWK, named by its thumbprint (RFC 7638)."""
    n = bytes.fromhex(openssl("rsa", "-in", pem, "-noout", "-modulus").decode().strip().partition("=")[2])
    jwk = {"e": "AQAB", "kty": "RSA", "n": text(n)}  # 65537, openssl's choice
    return jwk | {"kid": text(hashlib.sha256(compact(jwk).encode()).digest())}


def payload(args):
    now = int(time.time())
    out = {"iss": args.iss, "sub": args.sub or args.iss, "iat": now, "exp": now + args.expire}
    if args.aud:
        out["aud"] = args.aud.split(",") if "," in args.aud else args.aud
    for claim in (args.claims or "").split(","):
        if claim:
            name, _, value = claim.partition(":")
            out[name] = value
    for name, *values in args.listclaim or []:
        out[name] = values
    if args.nestedclaim:
        nested = {name: values[0] if len(values) == 1 else values for name, *values in args.nestedclaim}
        out[args.nestedkey] = nested | {"nested-2": dict(nested)}
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("key", help="file of the private key, as `openssl genrsa -out key.pem 2048` makes it")
    p.add_argument("-iss", "--iss", default="testing@secure.istio.io", help="issuer")
    p.add_argument("-aud", "--aud", help="audience, or several with commas")
    p.add_argument("-sub", "--sub", help="subject; default: the issuer")
    p.add_argument("-claims", "--claims", help="other claims: name:value,name:value")
    p.add_argument("-jwks", "--jwks", help="file to write the key set to")
    p.add_argument("-expire", "--expire", type=int, default=3600, help="seconds from now")
    p.add_argument("-listclaim", "--listclaim", action="append", nargs="+", help="a claim with a list: name value value")
    p.add_argument("-nestedkey", "--nestedkey", default="nested", help="claim that holds the nested ones")
    p.add_argument("-nestedclaim", "--nestedclaim", action="append", nargs="+", help="a nested claim: name value [value]")
    args = p.parse_args()
    jwk = public(args.key)
    if args.jwks:
        with open(args.jwks, "w") as f:
            f.write(compact({"keys": [jwk]}) + "\n")
    header = {"alg": "RS256", "kid": jwk["kid"], "typ": "JWT"}
    signed = ".".join(text(compact(part).encode()) for part in (header, payload(args)))
    print(signed + "." + text(openssl("dgst", "-sha256", "-sign", args.key, data=signed.encode())))


if __name__ == "__main__":
    main()
