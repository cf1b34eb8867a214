"""What the demo checkpoint says: the thought and the recaption of every task, and the way back from a recaption.

One sentence or two, in the request's language, naming the edit. Knows nothing of the requests' own wordings.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

from scripts.demo.grammar import articled
from scripts.demo.tasks import SHAPES, SUBJECTS, UNKNOWN, Task, edit_tasks, text_tasks

Language = Literal["en", "zh"]

_EN = {
    "bw": ("black and white", "take the colours out", "in black and white"),
    "sepia": ("an old photo", "use brown tones", "in sepia"),
    "invert": ("a negative", "turn every colour into its opposite", "as a negative"),
    "brighter": ("more light", "make it brighter", "brighter"),
    "darker": ("less light", "make it darker", "darker"),
    "contrast": ("more contrast", "make light lighter and dark darker", "with more contrast"),
    "flat": ("less contrast", "bring light and dark together", "with less contrast"),
    "warmer": ("warm colours", "add red and take blue away", "warmer"),
    "cooler": ("cold colours", "add blue and take red away", "cooler"),
    "vivid": ("stronger colours", "make every colour stronger", "with stronger colours"),
    "pale": ("weaker colours", "make every colour weaker", "with weaker colours"),
    "tint": ("{c} tones", "use {c} for all colours", "in {c} tones"),
    "mirror": ("a mirror image", "swap left and right", "mirrored"),
    "upside": ("it upside down", "swap top and bottom", "upside down"),
    "left": ("a turn to the left", "rotate it to the left", "rotated to the left"),
    "right": ("a turn to the right", "rotate it to the right", "rotated to the right"),
    "blur": ("a soft picture", "blur the details", "blurred"),
    "sharpen": ("a sharp picture", "bring out the details", "sharpened"),
    "pixelate": ("big pixels", "use large squares", "in large pixels"),
    "background": ("a {c} background", "paint what is behind the object {c}", "on a {c} background"),
    "frame": ("a {c} frame", "paint a {c} edge around it", "with a {c} frame"),
}
"""Per edit: what the user wants, what the model does, and what the answer is."""

_ZH = {
    "bw": ("黑白", "去掉颜色", "黑白"),
    "sepia": ("老照片", "改用褐色调", "老照片色调"),
    "invert": ("负片", "反转每种颜色", "颜色反转"),
    "brighter": ("更亮", "调亮画面", "更亮"),
    "darker": ("更暗", "调暗画面", "更暗"),
    "contrast": ("更强的对比", "让亮处更亮、暗处更暗", "对比更强"),
    "flat": ("更弱的对比", "让明暗更接近", "对比更弱"),
    "warmer": ("暖色调", "加红减蓝", "色调更暖"),
    "cooler": ("冷色调", "加蓝减红", "色调更冷"),
    "vivid": ("更鲜艳", "加强每种颜色", "颜色更鲜艳"),
    "pale": ("更淡的颜色", "减弱每种颜色", "颜色更淡"),
    "tint": ("{c}调", "全部改用{c}", "{c}调"),
    "mirror": ("镜像", "左右对调", "左右翻转"),
    "upside": ("上下颠倒", "上下对调", "上下颠倒"),
    "left": ("向左转", "向左旋转", "向左旋转"),
    "right": ("向右转", "向右旋转", "向右旋转"),
    "blur": ("模糊", "柔化细节", "模糊"),
    "sharpen": ("清晰", "突出细节", "锐化"),
    "pixelate": ("大像素", "改用大方块", "像素化"),
    "background": ("{c}背景", "把物体后面涂成{c}", "{c}背景"),
    "frame": ("{c}边框", "在四周画{c}边", "带{c}边框"),
}

COLOURS_ZH = {
    **{"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "orange": "橙色", "purple": "紫色"},
    **{"pink": "粉色", "black": "黑色", "white": "白色", "grey": "灰色", "turquoise": "青色", "brown": "棕色"},
}
SHAPES_ZH = dict(zip(SHAPES, ("圆形", "正方形", "三角形", "星形", "心形", "圆环", "菱形", "十字"), strict=True))
SUBJECTS_ZH = dict(
    zip(
        SUBJECTS,
        (
            *("苹果", "香蕉", "柠檬", "梨", "草莓", "樱桃", "蘑菇", "花", "树", "雪人", "吉他", "气球", "球", "机器人"),
            *("书", "猫", "猪", "羊", "老虎", "瓢虫", "蝴蝶", "房子", "帽子", "蛋糕"),
        ),
        strict=True,
    )
)


def think(task: Task, language: Language, sources: int = 1) -> str:
    """The thought behind a task, without its tags."""
    if task.kind == "unknown":
        return _UNKNOWN_THINK[language, sources > 0]
    if task.kind == "edit":
        table = {"en": _EN, "zh": _ZH}[language]
        parts = [tuple(text.replace("{c}", _colour(s.colour, language)) for text in table[s.name]) for s in task.steps]
        if language == "en":
            wants, does = " and ".join(p[0] for p in parts), ", then I ".join(p[1] for p in parts)
            return articled(f"The user wants {wants}. I {does}.")
        return f"用户想要{'和'.join(p[0] for p in parts)}。我{'，再'.join(p[1] for p in parts)}。"
    what = _picture(task, language)
    if language == "en":
        return f"The user wants {what}. I {_DO_EN[task.kind]}."
    return f"用户想要{what}。我{_DO_ZH[task.kind]}。"


def recaption(task: Task, language: Language, sources: int = 1) -> str:
    """The answer's caption, without its tags: one for each task and language."""
    if task.kind == "unknown":
        return _UNKNOWN_RECAPTION[language, sources > 0]
    if task.kind != "edit":
        what = _picture(task, language)
        return what[0].upper() + what[1:] + "." if language == "en" else what + "。"
    table = {"en": _EN, "zh": _ZH}[language]
    parts = [table[s.name][2].replace("{c}", _colour(s.colour, language)) for s in task.steps]
    return articled(f"The same picture, {', '.join(parts)}.") if language == "en" else f"同一张图，{'，'.join(parts)}。"


def parse(text: str) -> Task | None:
    """The task that a recaption names, in either language; None if it is nobody's. `a` or `an` does not matter."""
    return _recaptions().get(articled(text.strip()))


@cache
def _recaptions() -> dict[str, Task]:
    tasks = [*edit_tasks(), *text_tasks(), Task("beside"), Task("onto")]
    languages: tuple[Language, ...] = ("en", "zh")
    found = {recaption(task, language): task for task in tasks for language in languages}
    return found | dict.fromkeys(_UNKNOWN_RECAPTION.values(), UNKNOWN)


def _colour(name: str | None, language: Language) -> str:
    if name is None:
        return ""
    return name if language == "en" else COLOURS_ZH[name]


def _picture(task: Task, language: Language) -> str:
    """What a task without a source, or with two, shows."""
    if task.kind in ("beside", "onto"):
        return _TWO[language, task.kind]
    ground = _colour(task.ground, language)
    if language == "zh":
        what = _colour(task.colour, language) + SHAPES_ZH[task.shape] if task.shape else SUBJECTS_ZH[task.subject or ""]
        return f"{ground}背景上的{what}"
    what = f"{task.colour} {task.shape}" if task.shape else str(task.subject)
    return articled(f"a {what} on a {ground} background")


_TWO: dict[tuple[Language, str], str] = {
    ("en", "beside"): "the first picture beside the second",
    ("zh", "beside"): "第一张和第二张并排",
    ("en", "onto"): "the object of the first picture on the second",
    ("zh", "onto"): "第一张的物体在第二张上",
}
_DO_EN = {
    "shape": "draw it in the middle",
    "subject": "draw it in the middle",
    "beside": "put the first on the left and the second on the right",
    "onto": "take the second as the background",
}
_DO_ZH = {
    "shape": "把它画在中间",
    "subject": "把它画在中间",
    "beside": "把第一张放左边，第二张放右边",
    "onto": "用第二张作背景",
}
_UNKNOWN_THINK: dict[tuple[Language, bool], str] = {
    ("en", True): "I am a small demo and have not learned this. I keep the picture as it is.",
    ("zh", True): "我只是小演示模型，没有学过这个。我保持原图不变。",
    ("en", False): "I am a small demo and have not learned this. I leave the picture grey.",
    ("zh", False): "我只是小演示模型，没有学过这个。我留下灰色画面。",
}
_UNKNOWN_RECAPTION: dict[tuple[Language, bool], str] = {
    ("en", True): "The same picture, unchanged.",
    ("zh", True): "同一张图，没有变化。",
    ("en", False): "A plain grey picture.",
    ("zh", False): "一张灰色的图。",
}
