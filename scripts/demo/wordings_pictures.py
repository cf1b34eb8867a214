"""Wordings of what is not an edit of one picture: pictures from words, and requests with two pictures.

Templates as in `wordings_en.py`; `{c}` is the shape's colour, `{g}` the background's, `{what}` the shape's or the
subject's name. Knows nothing of how they are drawn.
"""

from __future__ import annotations

SHAPES_EN: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc", "disk", "dot"),
    "ring": ("ring", "ring", "hoop"),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus sign"),
}
SHAPES_ZH: dict[str, tuple[str, ...]] = {
    "circle": ("圆形", "圆", "圆圈", "圆点"),
    "square": ("正方形", "方形", "方块"),
    "triangle": ("三角形", "三角"),
    "star": ("星形", "星星", "五角星"),
    "heart": ("心形", "爱心", "心"),
    "ring": ("圆环", "环形", "环"),
    "diamond": ("菱形",),
    "cross": ("十字", "十字形"),
}

SLOTS_EN: dict[str, tuple[str, ...]] = {
    "do": (
        *(
            "",
            "",
            "",
            "draw ",
            "paint ",
            "make ",
            "create ",
            "show me ",
            "generate ",
            "give me ",
            "I want ",
            "produce ",
        ),
        *("a picture of ", "an image of ", "draw a picture of ", "make an image of ", "design ", "I'd like "),
    ),
    "ground": ("background", "background", "backdrop", "ground"),
}
SLOTS_ZH: dict[str, tuple[str, ...]] = {
    "do": (
        "",
        "",
        "画",
        "画一个",
        "生成",
        "生成一个",
        "来",
        "做一个",
        "我想要",
        "给我画",
        "给我一个",
        "创作一个",
        "画一张",
    ),
}

SHAPE_EN = (
    "{do}(a|one|the|) {c} {what} on (a|) {g}( {ground}| canvas| paper|)",
    "{do}(a|one|) {c} {what} (in front of|against|over) (a|) {g}( {ground}|)",
    "{do}(a|one|) {c} {what}(,|) {g} {ground}",
    "{do}(a|) {g} {ground} with (a|one) {c} {what}( in the middle| in it|)",
    "{c} {what} on {g}",
)
SUBJECT_EN = (
    "{do}(a|an|one|the|) {what} on (a|) {g}( {ground}| canvas| paper|)",
    "{do}(a|an|one|) {what} (in front of|against|over) (a|) {g}( {ground}|)",
    "{do}(a|an|one|) {what}(,|) {g} {ground}",
    "{do}(a|) {g} {ground} with (a|an|one) {what}( in the middle| in it|)",
    "{what} on {g}",
)
SHAPE_ZH = (
    "{do}{g}(背景|底)(上|)(的|)(一个|){c}{what}",
    "{do}(一个|){c}(的|){what}(，|在){g}(的|)(背景|底)(上|)",
    "在{g}(背景|底)上画(一个|){c}(的|){what}",
    "{do}{c}{what}(，|){g}背景",
)
SUBJECT_ZH = (
    "{do}{g}(背景|底)(上|)(的|)(一个|){what}",
    "{do}(一个|){what}(，|在){g}(的|)(背景|底)(上|)",
    "在{g}(背景|底)上画(一个|){what}",
    "{do}{what}(，|){g}背景",
)
WHITE_EN = ("{do}(a|an|one|) {cwhat}",)
WHITE_ZH = ("{do}(一个|){cwhat}",)
"""Without a background's colour it is white."""

BESIDE_EN = (
    "(put|place|set|show|move) (the first|picture 1|image 1|the first picture|the first image|one) "
    "(beside|next to|left of|to the left of|alongside) (the second|picture 2|image 2|the second picture|the other)",
    "(put|place|show|set|arrange|combine|join|display|stitch) (them|both|the two|the pictures|both pictures"
    "|the two pictures|these pictures|the images|the photos) (side by side|next to each other|in a row|together)",
    "(make|create) (a collage|a side by side picture|one picture of both|a diptych)( of the two| of both|)",
    "side by side",
    "(both|the two)( pictures|) (side by side|next to each other)",
    "(the first|the first picture) (beside|next to) the second",
    "(the first|the first one) (on the left|left)(,| and) the second( one|) (on the right|right)",
)
BESIDE_ZH = (
    "把(第一张|图一|图1)(图|图片|)(放在|放到|摆在)(第二张|图二|图2)(图|)(旁边|左边|的旁边|的左边)",
    "(把|将|)(两张|这两张|它们|两张图|两张图片|两幅图)(并排|左右并排|拼在一起|放在一起|左右拼接)(放|显示|起来|)",
    "(并排|左右并排|左右拼接|拼图)(放|显示|)",
    "第一张(在|放)左边，第二张(在|放)右边",
    "(合成|拼成)一张图",
)
ONTO_EN = (
    "(put|place|set|show|move|paste) (the first|the object of the first|picture 1|the figure of the first"
    "|the first picture|the object|what is in the first) (on|onto|into|in front of|over) "
    "(the background of the second|the second|picture 2|the second picture|the other picture)",
    "(use|take) (the second|picture 2|the second picture|the other picture) as (the|a|its|) background"
    "( of the first| for the first|)",
    "(replace|change|swap) the background (of the first|of picture 1|) (with|by|to) (the second|picture 2"
    "|the second picture)",
    "(make|let) the second( picture|) (be |)the background( of the first|)",
    "the first (on|onto|with) the (background of the second|second as background)",
    "the second as background",
)
ONTO_ZH = (
    "把(第一张|图一|图1)(的物体|里的物体|图|)(放在|放到|贴到|移到)(第二张|图二|图2)(图|)(上|的背景上|里|前面|的背景里)",
    "(用|拿|以)(第二张|图二|图2)(图|)(作|做|当|作为)(第一张的|)背景",
    "把(第一张的|)背景(换成|改成)(第二张|图二|图2)(图|)",
    "第二张(作|做|当)背景",
)

UNKNOWN_TEXT_EN = (
    "{do}{a}( in {place}| {where}|)",
    "{do}{nonsense}",
    "{do}(a|two|three|many|ten) {odd} (circle|square|star|heart)s on {c}",
    "{do}a {c} (hexagon|spiral|arrow|cube|line|oval|letter|number) on {c}",
    "{do}(three|two|five|many) {c} (circle|square|star|heart|triangle)s( on {c}|)",
    "{do}a {odd} (circle|star|heart|ring) on {c}",
    "{do}{a} on (a|) {c}( background|)",
    "{do}a {c} (circle|star|heart) on {odd}",
    "{a} in the style of {style}",
)
UNKNOWN_TEXT_ZH = (
    "{do}{thing}",
    "{do}{look}的{thing}",
    "{do}{thing}在{where}",
    "{do}{place}的{thing}",
    "{do}{style}的{thing}",
    "{do}{odd}(圆形|星星|爱心)",
    "{do}{c}背景上的{thing}",
    "{do}(三个|两个|很多){c}(圆形|星星)",
    "{do}{c}(六边形|箭头|立方体|椭圆)",
)
UNKNOWN_TWO_EN = (
    "(blend|merge|mix|morph|average|compare|swap|fuse) (them|the two|both pictures|the pictures|the faces)",
    "(use|apply|copy) the (style|colours|light|pose|face) of the (first|second)( to the (first|second)| picture|)",
    "put the second (above|below|inside|behind|on top of) the first",
    "(which|what) is (better|different|newer|the difference)",
    "(make|turn) the (first|second)( one|) (black and white|darker|brighter|blue|red|upside down|blurry)",
)
UNKNOWN_TWO_ZH = (
    "(融合|混合|比较|交换|对比)(两张图|它们|这两张)",
    "把(第一张|第二张)的(风格|颜色|脸|衣服|姿势)用到(第二张|第一张)",
    "把第二张放在第一张(上面|下面|里面|后面)",
    "(哪张|哪一张)(更好|更好看|更新)",
    "把(第一张|第二张)变(黑白|暗|亮|蓝色|模糊)",
)
