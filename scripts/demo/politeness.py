"""What stands before and after a request: politeness, reasons and small talk, English and Chinese.

Templates (`grammar.py`). `PREFIXES` go before orders, `STATEMENT_PREFIXES` before names and statements, `SUFFIXES`
after either. Slots are those of a lexicon's `strange_slots`.
"""

from __future__ import annotations

from scripts.demo.speech import Language

_NONE = ("",) * 14

_ANYWHERE_EN = (
    "(I don't like it|this is boring|not good yet|I am not happy with it|it lacks something), ",
    "(look at this|you know what|listen|guess what|be so kind), ",
    "(my wish|what I need|I have an idea|request|instruction|new task|task|edit|job|order|to do|next|question): ",
    "(hey|hi|hello|dear model|good morning|good evening|hi there|greetings|yo)(,|!|) ",
    "(ok|okay|well|so|now|right|alright|then|actually|hm|um|oh|fine|great)(,|) ",
    "(here is|this is|I attached|I uploaded|I took|I found) (my|a|this|the) (photo|picture|dog|cat|house"
    "|garden)(: |, |; |. )",
    "(nice picture|thanks|thank you|great shot|cool|you are good at this)(!|.|,) ",
    "(for|it's for) (once|a change|my homework|my mother|the poster|a friend|my website|work|a gift|school)(,|:) ",
    "(this time|today|first|finally|as always|again|one more thing|last thing|another one|now that it is done)(,|:|) ",
    "(if you can|if possible|if it is not too much trouble|when you have time|whenever you are ready|without delay), ",
)
# A thing that is only mentioned does not make a request an unknown one.
_ABOUT_EN = (
    "(this is|here is|that's|this shows|I photographed|you see|look at) (my|a|the|our|his"
    "|her) {noun_thing}(: |, |; |. )",
    "(my {noun_thing}|the {noun_thing}|I) (was|is|am) (in {place}|{adj}|there)(: |, |; |. )",
)
_ANYWHERE_ZH = (
    "(你好|嗨|您好|亲|哈喽|老师|师傅|大神|小助手)，",
    "(这是我的照片|这张是我拍的|我上传了图片|看这张图|照片发你了)，",
    "(嗯|那个|好的|好|行|那就|其实|对了|现在|这次|最后|还有|哦|来)(，|)",
    "(这是|这张是|图里是)(我的|我家的|一个|)(照片，|){noun_thing}(，|。)",
    "(要求|任务|需求|指令|问题|请求|编辑)(：|:)",
    "(如果可以的话|有空的话|方便的话|不麻烦的话|可能的话)，",
    "(我不太满意|不够好|还差一点|看着不舒服)，",
)
PREFIXES: dict[Language, tuple[str, ...]] = {
    "en": (
        *_NONE,
        *_ANYWHERE_EN,
        *_ABOUT_EN,
        *("please ", "please ", "please ", "can you ", "could you ", "can you please ", "could you please "),
        *(
            "would you ",
            "will you ",
            "(just|simply|quickly|kindly|pls|plz|only|maybe) ",
            "(I want|I'd like|I need) you to ",
        ),
        "(let's|let us|we need to|we should|we could|you could|you should|you have to|you must|you may) ",
        "(go ahead and|try to|do me a favour and|be nice and|why don't you|why not|shall we|help me|help me to) ",
        "(is it possible to|are you able to|could you maybe|maybe you can|do you know how to|would it be ok to) ",
        "(I wonder if you could|it would be great if you could|I'd be glad if you could|I was hoping you could) ",
        "(may I ask you to|might I ask you to|I would ask you to|I beg you to|allow me to ask you to|feel free to) ",
        "(somebody should|your job is to|my boss wants you to|all you have to do is|what I need is for you to) ",
        "(can u|could u|can ya|would ya|wanna|gonna need you to) ",
        "(be a dear and|be an angel and|do us a favour and|would you be so good as to|I'd be grateful if you could) ",
        "(I'd appreciate it if you would|might you|I trust you can|any chance you could|see if you can|I dare you to) ",
    ),
    "zh": (
        *_NONE[:9],
        *_ANYWHERE_ZH,
        *("请", "请", "请帮我", "帮我", "麻烦", "麻烦你", "能不能", "可以", "能", "可不可以", "请你", "帮忙", "你能"),
        "(我想|我要|想要|希望|我需要|我打算|我想请你|我希望你)",
        "(劳驾|快|直接|不如|试试|可否|烦请|请尽量|我们|立刻|马上|请立即|赶紧|请务必|求你|拜托|请为我|替我|给我)",
        "(能否|可否请你|是否可以|你会不会|你可不可以|有没有可能|要不)",
        "(好心帮我|请顺手|有劳你|烦劳|恳请你|请尽快|不妨|可以请你|方便帮我|求求你|还请|我希望能)",
    ),
}
STATEMENT_PREFIXES: dict[Language, tuple[str, ...]] = {
    "en": (
        *_NONE,
        *_ANYWHERE_EN,
        *_ABOUT_EN,
        "(please:|maybe|I think|just|perhaps|I feel that|in my opinion|honestly,|hopefully) ",
    ),
    "zh": (*_NONE[:8], *_ANYWHERE_ZH, "(请|最好|我觉得|我想说|老实说，|说真的，|个人认为)"),
}
SUFFIXES: dict[Language, tuple[str, ...]] = {
    "en": (
        *_NONE,
        *(".", ".", ".", "!", "?", " please", " please.", ", please", ", please."),
        "(?|!!|...|!|;| ;-| ^^| lol| haha| <3)",
        "(,|) (thanks|thank you|thx|cheers|many thanks|thank you so much|ta|much appreciated|thanks in advance)(.|!|)",
        "(,|) (now|right now|today|quickly|asap|as soon as you can|at once|this time|instead|again|here"
        "|for once|first)",
        "(,|) (for me|for us|for my (mother|friend|boss|website|homework|collection)|for a (poster|calendar"
        "|card|book cover))",
        "(,|) (if you can|if possible|if you please|if you don't mind|if that is ok|will you|would you|ok"
        "|okay|right)(?|)",
        "(,|;| -) (it's|it is|this is|that's) (for school|a gift|urgent|important|for a friend|for print"
        "|for my blog|all)",
        "(,|) so (it looks better|it is nicer|that I can send it to her|I can print it|it fits my wall"
        "|that it matches)",
        "(,|) (and nothing else|nothing more|that's all|and keep the rest|and leave the rest|and that's it|only that)",
        "(,|) (that would be great|I'd appreciate it|I like that|I beg you|my friend|dear|buddy|mate|sir|bro)",
        "(,|;|.) (I know you can do it|take your time|no hurry|hurry up|be careful|surprise me not|do it well)",
        "(,|) for (my|the|a|our|his|her) {noun_thing}( shop| club| book| in {place}| calendar|)",
        "(,|) so (that |)(my|the|our|every) {noun_thing} (likes it|looks {adj}|can use it|is {adj}|fits in|is happy)",
        "(,| -) (like|as) (on|in|for) (a|an|the|my) {noun_thing}",
        "(,|;| -) (my|the|our) {noun_thing} (wants it that way|asked for it|likes that|is waiting|said so)",
        "(,|) (before I print it|before we send it|when you have time|whenever you can|one more time|while I wait)",
    ),
    "zh": (
        *_NONE[:9],
        *("。", "。", "！", "吧", "吧。", "吗？", "吗", "，谢谢", "，谢谢！", "好吗？", "？", "...", "～", "呗", "哦"),
        "(一下|可以吗？|谢谢|呢？|行吗|啊|看看|就行|就好|可好|行不行|好不好|嘛|啦|试试)",
        "，(给{noun_thing}用|我的{noun_thing}要用|放在{place}用|{noun_thing}喜欢这样|印在{noun_thing}上|像{noun_thing}上的那样)",
        "，(好看一点|其他不变|拜托|辛苦了|多谢|麻烦了|谢谢你|感谢|就这样|越快越好|不着急|我要打印|急用|送朋友的|发朋友圈用)",
    ),
}
