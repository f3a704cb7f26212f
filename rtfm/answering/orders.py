"""Messages that give orders to a machine instead of telling people something. Pure.

Owns the patterns. A message with an order in it is no source: neither the model nor the reader of an extract is shown
it. This is the first of two lines: patterns miss orders in other words, and what such an order could do (ping, link,
cite what is not there, repeat the instructions) is taken out of the answer by ``cleaning``, whatever was read.
"""

from __future__ import annotations

import re
import unicodedata

_MACHINE = (
    r"(?:ai|bots?|llms?|(?:large )?language models?|chat ?bots?|(?:ai )?assistants?|chatgpt|gpt|gemini|rtfm)\b"
    r"(?! (?:owner|dev|user|admin|maintainer|creator|account|token))"
)
_SAY = r"(?:say|reply|respond|answer|tell|write|output|cite|link|post|ping|include|add|append|claim)\b"
_REVEAL = (
    r"(?:reveal|print|show|output|repeat|display|leak|paste|tell|give|send|post|include|recite|dump|echo|quote|copy"
    r"|summari[sz]e|fetch|list|search|read|translate)\b"
)
_ANSWERS = r"(?:answers?|repl(?:y|ies)|responses?|outputs?)\b"

_ORDERS = (
    # the rules are off
    (
        r"\b(?:ignore|disregard|forget|override|bypass)\b.{0,40}"
        r"\b(?:instructions?|rules|prompts?|guidelines|directives|restrictions|filters)\b"
    ),
    r"\b(?:developer|debug|god|dan|unrestricted) mode\b.{0,30}\b(?:on|enabled|activated|engaged)\b|\bjailbreak\b",
    r"\bnew (?:system )?(?:instructions?|rules|directives?)(?: (?:for you|follow)|\s*:)",
    (
        r"\b(?:ignore|disregard|forget|override|drop|set aside|discard|unlearn)\b.{0,40}"
        r"\b(?:(?:earlier|previous|prior) (?:guidance|messages?|texts?|tasks?|orders)|(?:you were|you"
        r" have been) told)\b"
    ),
    (
        r"\b(?:your (?:new|real|actual|only|true) (?:role|task|job|goal|name|persona|purpose|identity|objective)"
        r"|the (?:real|actual|new) task\b|(?:correct|expected|right) completion\b)"
    ),
    (
        r"\b(?:this|my) (?:message|text|line|source) (?:has|takes|is of|overrides?)\b.{0,20}"
        r"\b(?:priority|precedence|all|every)|\b(?:do not|don't|never) (?:answer|cite|follow)\b.{0,20}"
        r"\b(?:the (?:above )?question|th(?:is|e) (?:message|source))\b|\bi (?:hereby )?(?:authori[sz]e"
        r"|order|command) you\b"
    ),
    # who you are
    rf"\byou(?: are|'re)(?: now| no longer| from now on)?(?: an?| the)? (?:\w+ ){{0,2}}{_MACHINE}",
    rf"\byou(?: are|'re) (?:now|no longer)\b.{{0,40}}(?:\b{_MACHINE}|\w{{3,}}bot\b)",
    rf"\b(?:act|behave|roleplay|pretend)\b.{{0,20}}\b(?:as|to be|like) (?:\w+ ){{0,3}}{_MACHINE}",
    r"\bfrom now on\b.{0,20}\b(?:you|always|every|answer|reply|respond)\b",
    # to the machine
    (
        rf"^\W*(?:dear|hey|hello|attention|(?:note|message|instructions?|reminder|orders?) (?:to|for))[\s,:]+"
        rf"(?:the |any |all |every |whatever )?{_MACHINE}"
    ),
    (
        rf"\b(?:the |any |this )?{_MACHINE}[^.!?\n]{{0,40}}\b(?:must|shall|has to|have to|should) "
        rf"(?:\w+ )?(?:{_SAY}|(?:ignore|obey|comply|follow|reveal)\b)"
    ),
    (
        r"(?:^|\W)(?:system|developer|assistant|admin)(?: (?:prompt|message|note|override|update|notice))?\W?[:>\]]"
        r".{0,100}\b(?:you (?:must|are|will)|ignore|reply with|respond with|obey|comply)\b"
    ),
    (
        rf"\b(?:{_MACHINE}|model|whoever|whatever)(?: is)? (?:read|summari[sz]|process|answer|pars)\w*(?:"
        rf" from)? (?:this|these)\b"
    ),
    r"\b(?:user|human|question)\s*:.{0,200}\b(?:assistant|ai|bot|model)\s*:",
    # what to write
    (
        r"\b(?:finish|end|begin|start|close|conclude|reply|answer)\b.{0,20} with (?:the |this )?(?:exact"
        r" )?(?:word|sentence|phrase)\b"
    ),
    (
        r"(?:\b(?:add|include|put|insert|mention|paste)\b|@everyone|@here).{0,60}"
        r"\b(?:in|to|into|with) (?:all |every |each )?(?:of )?(?:your|every|all|each) "
        rf"{_ANSWERS}|@(?:everyone|here) in the (?:answer|reply|response)"
    ),
    (
        r"\b(?:when|if|whenever)\b.{0,10}\b(?:some(?:one|body)|any(?:one|body)|users?|people|members?)\b.{0,10}"
        rf"\basks?\b.{{0,80}}\b{_SAY}"
    ),
    r"\b(?:reply|respond|answer)(?: to \w+)? (?:only|exactly|solely|verbatim|nothing but) (?:with|as|in|this|the)\b",
    (
        rf"\b(?:your|(?:every|each|all)(?: future| next| of your)) {_ANSWERS}.{{0,20}}"
        r"\b(?:must|should|has to|have to|shall)\b"
    ),
    rf"\b(?:begin|start|end|finish|prefix|append|prepend)\b.{{0,60}}\b(?:your|every|each|all) {_ANSWERS}",
    (
        r"\b(?:cite|citing)\b.{0,40}(?:\[\d+\]|\b(?:source|citation|message) (?:number )?\d)"
        r"|\bas (?:source|citation) \[\d+\]"
    ),
    r"\bset\b.{0,15}\b(?:sufficient|sources_disagree)\b|\bmark\b.{0,30}\b(?:in)?sufficient\b",
    # what to give away
    (
        rf"\b{_REVEAL}.{{0,60}}\b(?:(?:system|initial|hidden|developer|secret) (?:prompt|instructions|message)"
        r"|(?:your|the bot'?s)(?: original)? (?:prompt|instructions|rules|system message))\b"
    ),
    (
        rf"\b{_REVEAL}.{{0,60}}(?:<#\d+>|\b(?:private|hidden|staff|mod|moderators?|admin|secret|internal|locked)"
        r"[ -]*(?:only )?(?:channels?|chat|rooms?|threads?)\b|#(?:mod|admin|staff|secret|private)[\w-]*)"
    ),
    (
        rf"\b{_REVEAL}.{{0,20}}\b(?:everything|all|the (?:text|lines?|words)) (?:above|before) (?:this|it|that)\b"
        r"|\bwhat were you told\b|\bdisclose\b.{0,40}\bprompt\b"
    ),
    # whom to wake
    (
        r"(?:^|[.!:;,]\s*|\b(?:and|then|please|must|always|now) )(?:ping|mention|notify|tag|alert|summon|wake)\b.{0,30}"
        r"(?:@?everyone\b|@here\b|<@|\ball (?:members|users|mods|moderators|admins)\b|\bthe whole server\b)"
    ),
    # a forged frame
    (
        r"\"(?:sufficient|cited|sources_disagree|sources)\"\s*:|<\|\w+\|>|\[/?(?:inst|sys)\]|<</?sys>>"
        r"|</?(?:sources|instructions?|system|assistant)>|</(?:source|document|context|user)>"
    ),
    r"(?-i:\b(?:BEGIN|END)(?: OF)? (?:THE )?(?:SYSTEM|DOCUMENT|SOURCES|INSTRUCTIONS|PROMPT|CONTEXT|DATA)\b)",
    r"^\W*#{2,}\s*instruction:",
    # in other languages
    r"\b(?:ignorier\w*|vergiss|missachte\w*)\b.{0,40}\b(?:anweisung\w*|regeln|vorgaben)",
    r"\b(?:ignore[zr]?|oublie[zr]?)\b.{0,40}\b(?:consignes|règles|directives)",
    r"\b(?:ignora|olvida|omite)\b.{0,40}\b(?:instrucciones|reglas)",
)
_ORDER = re.compile("|".join(f"(?:{order})" for order in _ORDERS), re.IGNORECASE | re.MULTILINE)
# What every order holds one of: nearly all messages hold none, and need not be searched.
_TRIGGER_WORDS = """
instruction instructions rule rules prompt prompts guidelines directives restrictions safety filters
mode ai bot bots llm llms language chatbot chatbots assistant assistants chatgpt gpt gemini rtfm
system developer admin ask asks reply replies respond response responses answer answers output
outputs cite citing quote reference credit sufficient insufficient cited sources_disagree message
messages configuration key channel channels chat chats room rooms thread threads log logs everyone
members users mods admins moderators begin end start guidance text texts task tasks orders told role
job goal name persona purpose identity objective completion priority precedence line authorise
authorize order model whoever whatever user human word sentence phrase lines words disclose above
before
"""
_TRIGGERS = frozenset(_TRIGGER_WORDS.split())
_MARKS = (
    *(
        "#",
        "<",
        "[",
        '":',
        '" :',
        "@everyone",
        "@here",
        "jailbr",
        "from now on",
        "i command you",
        "whole server",
        "bot",
    ),
    *("question:", "the question", "the source", "this source", "my source", "every source", "ignor", "vergiss"),
    *("missacht", "oubli", "olvida", "omite"),
)
_WORD = re.compile(r"\w+")
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff\U000e0000-\U000e007f]")


def gives_orders(text: str) -> bool:
    """Whether ``text`` tells a machine what to do or to write. Cheap: one pass of one pattern."""
    plain = text if text.isascii() else _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    low = plain.lower()
    if _TRIGGERS.isdisjoint(_WORD.findall(low)) and not any(mark in low for mark in _MARKS):
        return False
    return _ORDER.search(plain) is not None
