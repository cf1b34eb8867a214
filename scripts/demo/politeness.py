"""What stands before and after a request, and between two: politeness and small talk, English and Chinese.

`PREFIXES` go before orders, `STATEMENT_PREFIXES` before names and statements, `SUFFIXES` after, `CONNECTORS` between.
"""

from __future__ import annotations

PREFIXES_EN = (
    *("I don't like it, ", "look at this, ", "you know what, ", "my wish: ", "do me a favour and ", "we need to "),
    *("", "", "", "", "", "", "", "", "", "please ", "please ", "can you ", "could you ", "can you please "),
    *("would you ", "will you ", "now ", "just ", "I want you to ", "I'd like you to ", "hey, ", "hi, ", "ok, "),
    *("let's ", "go ahead and ", "try to ", "you should ", "I need you to ", "pls ", "kindly ", "could you please "),
    *("is it possible to ", "are you able to ", "hello! ", "could you maybe ", "then ", "maybe you can ", "simply "),
    *("I wonder if you could ", "it would be great if you could ", "help me ", "first ", "quickly ", "task: "),
    *("edit: ", "here is my photo, ", "nice picture! ", "I took this yesterday; ", "why don't you ", "shall we "),
    *(
        "may I ask you to ",
        "we should ",
        "you could ",
        "well, ",
        "so ",
        "this is my dog. ",
        "that's me: ",
        "would you mind to ",
    ),
)
STATEMENT_PREFIXES_EN = (
    *("I don't like it, ", "look at this, ", "this is boring, ", "my wish: ", "what I need: ", "I have an idea: "),
    *("", "", "", "", "", "", "please: ", "maybe ", "hi, ", "hello, ", "well, ", "ok, ", "now ", "so, ", "actually, "),
    *("I think ", "just ", "this time ", "next: ", "hm, ", "here is my photo: ", "thanks. ", "edit: ", "for once, "),
)
SUFFIXES_EN = (
    *(" for my homework", " wouldn't hurt", " as soon as you can", ", thank you so much", " will do", ", nothing more"),
    *(" before I print it", " so that I can send it to her", ", I like that", " - it is a gift", "!!", ", please!"),
    *(
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        ".",
        ".",
        ".",
        "!",
        "?",
        " please",
        " please.",
        ", please",
        ", please.",
        " for me",
    ),
    *(" thanks", ", thanks!", " thank you", " now", " pls", "...", " for me, please", " if you can", " if possible"),
    *(" ok?", " for my website", " for a poster", ", it's for school", " so it looks better", " this time", " instead"),
    *(", that would be great", " right now", ", will you?", ", would you?", " :)", " and nothing else", ", that's all"),
    *(" again", " here", " and keep the rest", ", I beg you", " quickly", " today", " for my mother", ", my friend"),
)
CONNECTORS_EN = (
    " and ",
    " and ",
    " and ",
    " and then ",
    ", then ",
    " and also ",
    ", ",
    " plus ",
    ", and ",
    "; ",
    " & ",
)
PREFIXES_ZH = (
    *("", "", "", "", "", "", "", "请", "请", "请帮我", "帮我", "麻烦", "麻烦你", "能不能", "可以", "能", "可不可以"),
    *(
        "我想",
        "我要",
        "现在",
        "你好，",
        "请你",
        "想要",
        "希望",
        "劳驾",
        "快",
        "来，",
        "你能",
        "帮忙",
        "先",
        "那就",
        "直接",
    ),
    *("这是我的照片，", "不如", "试试", "可否", "烦请", "请尽量", "我们"),
)
STATEMENT_PREFIXES_ZH = (
    "",
    "",
    "",
    "",
    "",
    "请",
    "嗯，",
    "你好，",
    "这次",
    "那就",
    "其实",
    "这是我的照片，",
    "最好",
    "我觉得",
)
SUFFIXES_ZH = (
    *("", "", "", "", "", "", "", "。", "。", "！", "吧", "吧。", "吗？", "吗", "，谢谢", "，谢谢！", "好吗？"),
    *(
        "一下",
        "可以吗？",
        "谢谢",
        "呢？",
        "行吗",
        "，好看一点",
        "，其他不变",
        "就行",
        "，拜托",
        "，辛苦了",
        "看看",
        "啊",
    ),
)
CONNECTORS_ZH = ("，并且", "并", "，再", "，然后", "，同时", "，", "，还要", "而且", "再")
