"""The published forms of tokens, keys and passwords that people paste into help channels. Pure.

A form's pattern is tried only if one of the form's literals occurs in the text. Each pattern limits the length of a
repetition if the part of the pattern after the repetition may fail to match. The time of a search is therefore
proportional to the length of the text.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

from attrs import frozen


@frozen
class SecretForm:
    """One form of a secret.

    ``hints`` are literals in lower case. If a text contains such a secret, the text in lower case contains at least one
    of ``hints``. The secret is the group ``secret`` of ``pattern``, or the whole match if there is no such group.
    ``accepts`` returns whether a match is really a secret. If ``accepts`` is None, every match is a secret.
    """

    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    accepts: Callable[[str], bool] | None = None

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the (start, end) of each secret of this form in ``text``."""
        group = "secret" if "secret" in self.pattern.groupindex else 0
        for match in self.pattern.finditer(text):
            if self.accepts is None or self.accepts(match[group]):
                yield match.span(group)


_UPPER, _LOWER, _LETTER = re.compile(r"[A-Z]"), re.compile(r"[a-z]"), re.compile(r"[A-Za-z]")
_DIGIT, _RUN = re.compile(r"\d"), re.compile(r"[A-Za-z0-9]{32}")


def _is_mixed(text: str) -> bool:
    """Return whether ``text`` has upper case, lower case and digits. Words, hashes and paths rarely have all three."""
    return bool(_UPPER.search(text) and _LOWER.search(text) and _DIGIT.search(text))


def _is_random(text: str) -> bool:
    """Return whether ``text`` looks randomly generated.

    Such a text has upper case, lower case and digits, and often changes between these three kinds. In names that are
    joined to one word the kind changes rarely, and hashes have only one case.
    """
    kinds = "".join(
        "0" if sign.isdigit() else "a" if sign.islower() else "A" if sign.isupper() else "-" for sign in text
    )
    changes = sum(kind != following for kind, following in pairwise(kinds))
    return all(kinds.count(kind) >= 3 for kind in "0aA") and 5 * changes >= 2 * len(text)


def _is_token(text: str) -> bool:
    """Return whether ``text`` is no ordinary word: it has letters and digits, or 32 letters or digits in a row."""
    return bool(_DIGIT.search(text) and _LETTER.search(text)) or bool(_RUN.search(text))


def _is_login(text: str) -> bool:
    """Return whether ``text`` is base64 of a text with a colon, such as user:password."""
    try:
        return b":" in base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return False


_PLACEHOLDER = re.compile(
    r"[<${%*\\/~]|(?:your|my|the|some|any|insert|enter)[-_ ]|(?:x{1,64}|\.{1,64}|-{1,64}|_{1,64}|\*{1,64})$"
    r"|(?:true|false|null|nil|none|undefined|string|number|bool|boolean|str|int|text|void|any|object|optional|required"
    r"|secret|token|password|passwd|pass|passphrase|key|value|example|changeme|redacted|hidden|empty|enabled|disabled"
    r"|self|this|input|request|data|user|username|props|authentication|incorrect|wrong|invalid|missing|protected)$",
    re.IGNORECASE,
)
_CODE = re.compile(r"[A-Za-z_$][\w$]{0,63}(?:[.(\[]|->|::|=>)|[A-Z][A-Z_]{3,63}$")
"""The beginning of an expression in a program, or the name of a constant."""


def _is_assigned_secret(text: str) -> bool:
    """Return whether the value after ``password=`` is a password: neither a placeholder nor code."""
    return not _PLACEHOLDER.match(text) and not _CODE.match(text)


def _is_quoted_secret(text: str) -> bool:
    return not _PLACEHOLDER.match(text)


def _is_prose_secret(text: str) -> bool:
    """Return whether the text after ``password:`` in prose is a password and not an ordinary word."""
    return _is_assigned_secret(text) and _is_token(text)


def _is_quoted_token(text: str) -> bool:
    return _is_quoted_secret(text) and _is_token(text)


_PASSWORDS = r"(?:passw(?:or)?d|passphrase|passcode|pwd|(?<![A-Za-z])pass|secret)s?"
_KEY = (
    r"(?:secret[ _-]?(?:access[ _-]?)?key(?:[_-]?base)?|token|_auth|credential|signature"
    r"|(?:api|access|account|auth|private|encryption|signing|license|master|storage|deploy)[ _-]?key"
    r"|(?:api|app|client|shared|webhook|signing)[ _-]?secret)s?"
)
_ASSIGNMENT = r"[\"'`\]]{0,2}[ \t]{0,3}(?::=|=>|={1,3}|:)[ \t]{0,3}"
_PROSE_ASSIGNMENT = r"[\"'`\]*]{0,2}(?:[ \t]{0,3}[:=][ \t]{0,3}|[ \t]{1,3}(?:is|was)[ \t]{0,2}:?[ \t]{1,3})[*`\"']{0,2}"
_QUOTED = r"(?P<quote>[\"'`])(?P<secret>[^\"'`\n]{4,512})(?P=quote)"
_UNQUOTED = r"[^\s\"'`,;&<>|]"

_PASS_HINTS = ("passw", "passphrase", "passcode", "pwd", "pass", "secret")
_KEY_HINTS = ("key", "token", "_auth", "credential", "secret", "signature")


def _form(
    hints: tuple[str, ...], pattern: str, accepts: Callable[[str], bool] | None = None, flags: int = 0
) -> SecretForm:
    return SecretForm(hints, re.compile(pattern, flags), accepts)


def _token(prefixes: str, body: str, accepts: Callable[[str], bool] | None = None) -> SecretForm:
    """Build the form of tokens that begin with one of the ``prefixes``, which are separated by spaces.

    The character before a token must not be a letter or a digit. It may be ``_``, which is markup for italics.
    """
    literals = prefixes.split(" ")
    pattern = rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, literals))}){body}"
    return SecretForm(tuple(literal.lower() for literal in literals), re.compile(pattern), accepts)


_END = r"(?![A-Za-z0-9])"

FORMS = (
    # Blocks of several lines. A block without its last line ends at the end of the text.
    _form(
        ("private key",),
        r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}"
        r".*?(?:-{4,5} ?END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}|\Z)",
        flags=re.DOTALL,
    ),
    _form(("putty-user-key-file",), r"PuTTY-User-Key-File-\d.*?(?:Private-MAC: ?[0-9a-f]{20,128}|\Z)", flags=re.DOTALL),
    _form(("ls0tls1crudjti",), r"LS0tLS1CRUdJTi[A-Za-z0-9+/=\s]{40,}"),  # a block in base64
    _token("AGE-SECRET-KEY-1", r"[A-Z0-9]{40,}"),
    # Addresses
    _form(
        ("://",),
        # A password ends before //. Otherwise a text full of :// would be searched to its end from each ://.
        r"(?<=://)(?P<secret>[^\s/?#:@<>\"'`]{0,128}:(?!\d{1,5}/)(?:(?!//)[^\s@<>\"'`]){1,1024}"
        r"(?:@[^\s@/<>\"'`]{1,128})?)(?=@)",
    ),
    _form(("://",), r"(?<=://)(?P<secret>[\w.~-]{20,256})(?=@)", _is_mixed),
    _form(("webhooks/",), r"(?<=webhooks/)\d{15,22}/[\w-]{30,}"),  # Discord
    _form(("hooks.slack.com/",), r"(?<=hooks\.slack\.com/)(?:services|workflows|triggers)/[\w/-]{20,}"),
    _form(("webhook.office.com/",), r"(?<=webhook\.office\.com/)webhookb2/[\w@/-]{30,}"),
    _form(("sig=",), r"(?<=[?&]sig=)[\w%+/=-]{20,}", flags=re.IGNORECASE),  # Azure's shared access signatures
    _form(("x-amz-signature=", "signature="), r"(?<=signature=)[\w%+/=-]{20,}", flags=re.IGNORECASE),
    _form(("x-amz-security-token=",), r"(?<=x-amz-security-token=)[\w%+/=-]{20,}", flags=re.IGNORECASE),
    # Headers
    _form(("bearer",), r"\bbearer[ \t:]{1,3}[\"'`]?(?P<secret>[\w.~+/-]{16,}=*)", _is_token, re.IGNORECASE),
    _form(("basic",), r"\bbasic[ \t:]{1,3}[\"'`]?(?P<secret>[A-Za-z0-9+/]{8,512}={0,2})", _is_login, re.IGNORECASE),
    _form(('"auth"',), r"\"auth\"\s{0,3}:\s{0,3}\"(?P<secret>[A-Za-z0-9+/]{8,512}={0,2})\"", _is_login),
    _form(
        ("authorization",),
        r"\bauthorization[\"']?[ \t]{0,2}[:=][ \t]{0,2}[\"']?(?:token|apikey|key|digest|bot|ssws)[ \t]{1,2}"
        r"(?P<secret>[\w.~+/=-]{12,})",
        _is_token,
        re.IGNORECASE,
    ),
    _form(("-u ", "--user "), r"(?:-u|--user)[ =][\"']?(?P<secret>[\w.@+-]{1,64}:[^\s\"':]{4,128})", _is_token),
    # Platforms
    _form((".",), r"(?<![A-Za-z0-9])(?:mfa\.[\w-]{60,}|[MNO][\w-]{22,29}\.[\w-]{5,7}\.[\w-]{25,})"),  # Discord
    _token("AIza", rf"[\w-]{{35}}{_END}"),  # Google; also the next two forms
    _token("GOCSPX- ya29.", r"[\w-]{20,}"),
    _form(("1//0",), r"(?<![\w/])1//0[\w-]{30,}"),
    _token("ghp_ gho_ ghu_ ghs_ ghr_", r"[A-Za-z0-9]{30,}"),
    _token("github_pat_", r"\w{30,}"),
    _token("glpat- gldt- glft- glsoat- glrt- glcbt- glimt- glptt- glagent- gloas- glffct- glwt-", r"[\w.-]{18,}"),
    _token("GR1348941", r"[\w-]{18,}"),
    _token("sk- pk-lf- sess-", r"[\w-]{20,}", _is_token),  # model providers; also the next two forms
    _token("gsk_ pplx- xai- r8_ tgp_v1_ csk- nvapi- fw_ jina_ tvly-", r"[\w-]{24,}", _is_token),
    _token("hf_ api_org_", r"[A-Za-z0-9]{28,}"),
    _token("A3T AKIA ASIA ABIA ACCA", rf"[0-9A-Z]{{13,17}}{_END}", lambda text: len(text) == 20),  # AWS
    _token("ABSK", r"[A-Za-z0-9+/=]{60,}"),
    _token("IQoJb3JpZ2lu FwoGZXIvYXdz FQoGZXIvYXdz", r"[A-Za-z0-9+/=%_-]{40,}"),
    _form(
        ("aws", "akia", "asia", "secret", "access key", "s3"),
        r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{40}(?![A-Za-z0-9+/=])",
        _is_mixed,
    ),
    _form(("xox", "xapp-"), r"(?<![A-Za-z0-9])(?:xox[a-z](?:\.xox[a-z])?-|xapp-)[\w%.+/-]{10,}"),  # Slack
    _token("npm_", rf"[A-Za-z0-9]{{30,}}{_END}"),
    _token("pypi-Ag", r"[\w-]{16,}"),
    _token("dckr_pat_ dckr_oat_", r"[\w-]{20,}"),
    _token("dop_v1_ doo_v1_ dor_v1_", r"[a-f0-9]{32,}"),
    _token("hvs. hvb. hvr.", r"[\w-]{20,}"),  # Vault
    _form((" s.", "=s.", ":s.", '"s.'), r"(?<![\w.])s\.[A-Za-z0-9]{24}(?![\w.])", _is_mixed),
    _token("sk_live_ sk_test_ rk_live_ rk_test_ sk_prod_ rk_prod_", r"[A-Za-z0-9]{16,}"),  # Stripe
    _token("whsec_", r"[A-Za-z0-9+/=_-]{20,}"),
    _form((":aa", ":"), rf"(?<!\d)\d{{8,10}}:A[A-Za-z0-9_-]{{34}}{_END}"),  # Telegram
    _token("SG.", r"[\w-]{16,32}\.[\w-]{32,64}"),  # SendGrid
    _form(("sk", "ac"), rf"(?<![A-Za-z0-9])(?:SK|AC)[0-9a-f]{{32}}{_END}"),  # Twilio
    _form(("8q~", "7q~"), r"(?<![A-Za-z0-9])[\w~.-]{3}[78]Q~[\w~.-]{31,34}"),  # Azure; also the next two forms
    _form(
        ("jqqj99", "azdo", "aios", "asta"), r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{32,76}(?:JQQJ99|AZDO)[A-Za-z0-9+/=]{4,60}"
    ),
    _form(("==",), r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{86}==(?![A-Za-z0-9+/=])", _is_mixed),
    _token("shpat_ shpca_ shppa_ shpss_ shptka_", r"[a-fA-F0-9]{30,}"),
    _token("sq0atp- sq0csp- sq0idp-", r"[\w-]{20,}"),
    _token("key-", rf"[0-9a-f]{{32}}{_END}"),  # Mailgun
    _form(("-us",), rf"(?<![A-Za-z0-9])[0-9a-f]{{32}}-us\d{{1,2}}{_END}"),  # Mailchimp
    _token("xkeysib- xsmtpsib-", r"[a-f0-9]{40,}[\w-]{0,40}"),
    _token(
        "lin_api_ ntn_ figd_ PMAK- NRAK- NRII- glsa_ glc_ sntrys_ sntryu_ pul- rubygems_ CLOJARS_", r"[\w=+/-]{20,}"
    ),
    _token("secret_", rf"[A-Za-z0-9]{{40,46}}{_END}"),  # Notion
    _token("dapi", rf"[0-9a-f]{{32}}(?:-\d)?{_END}"),  # Databricks
    _form((".atlasv1.",), r"(?<![A-Za-z0-9])[A-Za-z0-9]{14}\.atlasv1\.[\w=-]{40,}"),  # Terraform
    _token("dp.pt. dp.st. dp.ct. dp.sa. dp.scim. dp.audit.", r"[\w.]{30,}"),  # Doppler
    _token("pscale_tkn_ pscale_pw_ pscale_oauth_ sbp_ sb_secret_ nfp_ tskey- CCIPAT_ bkua_ ops_eyJ", r"[\w.-]{20,}"),
    _token("sqp_ sqa_ squ_", r"[a-f0-9]{30,}"),
    _token("fo1_ fm1_ fm2_ fm1r_ FlyV1", r"[\w+/=, -]{30,}", _is_mixed),
    _token("HRKU- EAAA ATATT3 ATCTT3 ATBB AKCp LTAI AKID oy2 cio phc_ phx_ rnd_", r"[\w=-]{16,}", _is_mixed),
    _token("pat", r"[A-Za-z0-9]{14}\.[a-f0-9]{64}"),  # Airtable
    _token("sl.", r"[\w-]{60,}"),  # Dropbox
    _token("AAAAAAAAAAAAAAAAAAAA", r"[\w%-]{50,}"),  # Twitter
    _token("oauth:", rf"[a-z0-9]{{30}}{_END}"),  # Twitch
    _form(("eyj",), r"(?<![A-Za-z0-9])eyJ[\w-]{8,600}\.eyJ[\w-]{8,}(?:\.[\w-]*){0,3}"),  # a JSON web token
    _form(
        ("eyj",), r"(?<![A-Za-z0-9])eyJ[\w-]{8,600}\.[\w-]{0,800}\.[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"
    ),  # an encrypted JSON web token
    # A standalone random word that is not a public SSH key
    _form(
        ("",),
        r"(?<![^\s\"'`*(\[])(?!AAAA[BCE]3Nza)[A-Za-z0-9][A-Za-z0-9+/_-]{30,254}[A-Za-z0-9=](?![^\s\"'`*)\],.;!?])",
        _is_random,
    ),
    # Values recognised by the name or the sentence before them
    _form(_PASS_HINTS, _PASSWORDS + _ASSIGNMENT + _QUOTED, _is_quoted_secret, re.IGNORECASE),
    _form(_PASS_HINTS, rf"{_PASSWORDS}=(?P<secret>{_UNQUOTED}{{4,512}})", _is_assigned_secret, re.IGNORECASE),
    _form(
        _PASS_HINTS,
        rf"{_PASSWORDS}{_PROSE_ASSIGNMENT}(?P<secret>{_UNQUOTED}{{6,512}})",
        _is_prose_secret,
        re.IGNORECASE,
    ),
    _form(_PASS_HINTS, rf"--?{_PASSWORDS}[ =](?P<secret>(?!-){_UNQUOTED}{{4,512}})", _is_prose_secret, re.IGNORECASE),
    _form(_KEY_HINTS, _KEY + _ASSIGNMENT + _QUOTED, _is_quoted_token, re.IGNORECASE),
    _form(_KEY_HINTS, rf"{_KEY}{_PROSE_ASSIGNMENT}(?P<secret>{_UNQUOTED}{{8,2048}})", _is_prose_secret, re.IGNORECASE),
    _form(_KEY_HINTS, rf"--?{_KEY}[ =](?P<secret>(?!-){_UNQUOTED}{{8,2048}})", _is_prose_secret, re.IGNORECASE),
)
