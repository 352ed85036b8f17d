"""Ready-made authenticators: who a client is, by a token that its upgrade request carries.

Rules:

    1. A token is taken from the places that are switched on. Two different ones in a request, one
       that is too long, and one that is no visible ASCII are refused before anything is computed.
    2. The answer is an Identity or None, whatever a request carries. Only the application's own
       `identity` function may raise.
    3. No token, no part of one and nothing that one says goes to a log: the line of a refusal
       names its reason in our words or as the class of an exception.
    4. A token is compared by its digest, in constant time; what is refused earlier depends on the
       request and on what is public (algorithms, key ids, times), never on a secret.
    5. The configuration decides which key and which algorithms are tried. A token's header can only
       name one of them; a key of one family is never given to another.
    6. Only the Identity counts: no id is taken from the path, the query, or any header.

    basic.py       BasicAuthenticator: names and passwords, for pages of operators
    reader.py      the token of a request
    tokens.py      TokenAuthenticator: tokens that are known beforehand
    jwts.py        JWTAuthenticator: JSON Web Tokens that somebody else signs
    keys.py        the keys and algorithms of these, checked
    key_file.py    a key set in a file that may change
"""

from wsc_fast.auth.basic import BasicAuthenticator
from wsc_fast.auth.jwts import JWTAuthenticator
from wsc_fast.auth.tokens import TokenAuthenticator

__all__ = ["BasicAuthenticator", "JWTAuthenticator", "TokenAuthenticator"]
