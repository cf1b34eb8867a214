"""Wordings of what is not an edit of one picture: pictures from words, and requests with two pictures; colours' names"
".

Templates as in `wordings_en.py`; `{c}` is the shape's colour, `{g}` the background's, `{what}` the shape's or the
subject's name. Knows nothing of how they are drawn.
"""

from __future__ import annotations

from scripts.demo.speech import Language

COLOURS_EN: dict[str, tuple[str, ...]] = {
    "grey": ("grey", "gray"),
    "turquoise": ("turquoise", "turquoise", "teal"),
    "purple": ("purple", "purple", "violet"),
}
COLOURS_ZH: dict[str, tuple[str, ...]] = {
    "red": ("红色", "红色", "红", "大红色"),
    "green": ("绿色", "绿色", "绿"),
    "blue": ("蓝色", "蓝色", "蓝"),
    "yellow": ("黄色", "黄色", "黄"),
    "orange": ("橙色", "橙色", "橘色", "橘黄色"),
    "purple": ("紫色", "紫色", "紫"),
    "pink": ("粉色", "粉红色", "粉红"),
    "black": ("黑色", "黑色"),
    "white": ("白色", "白色"),
    "grey": ("灰色", "灰色"),
    "turquoise": ("青色", "青绿色"),
    "brown": ("棕色", "褐色", "咖啡色"),
}
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
        "(draw|paint|sketch|create|generate|render|imagine|produce|compose|depict|illustrate|picture) (me |us |) ",
        "(I want|I'd like|I need|I would love|I wish|can I have|could I get|may I see|show me|let me see|give me) ",
        "(I'd be happy with|I'm looking for|I imagine|we need|how about|what about|there should be|let there be) ",
        "(make|create|draw|give me|show me) (a|an) (simple |small |nice |new |)(picture|image|drawing"
        "|painting|icon) of ",
        "(a|an) (simple |small |nice |)(picture|image|drawing|painting|illustration|icon|photo) (of|with|showing) ",
    ),
    "ground": ("background", "background", "backdrop", "ground", "(canvas|paper|surface|wall|field)"),
    "on": ("on", "on", "(in front of|against|over|upon|before|set on|painted on|placed on|sitting on|shown on)"),
    "look": ("", "", "", "(big|simple|nice|single|large|plain|lonely|little|pretty) "),
    "spot": ("", "", "( in the middle| in it| in the centre| at the centre| standing on it| on top|, centred)"),
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
        "(画|绘制|生成|创建|设计|描绘|来|做|弄)(一个|一张|一幅|个|)",
        "(我要|我想看|想要|给我看|帮我画|能不能画|我需要|希望看到)(一个|一张|)",
    ),
}

SHAPE_EN = (
    "{do}(a|one|the|) {c} {what} on (a|) {g}( {ground}| canvas| paper|)",
    "{do}(a|one|) {c} {what} (in front of|against|over) (a|) {g}( {ground}|)",
    "{do}(a|one|) {c} {what}(,|) {g} {ground}",
    "{do}(a|) {g} {ground} with (a|one) {c} {what}( in the middle| in it|)",
    "{c} {what} on {g}",
    "{do}(a|one|) {look}{c} {what} {on} (a|an|) (plain |solid |){g}( {ground}|)",
    "{do}(a|one|) {look}{c} {what} with (a|an) (plain |) {g} {ground}( behind it|)",
    "{do}(a|one|) {look}{what} (in|of|coloured|painted) {c} {on} (a|an|) {g}( {ground}|)",
    "{do}(a|one|) {c} {what}(, the| and the| where the|; the) {ground} (is|should be|in|must be|being) {g}",
    "(on|over|in front of) (a|an|) {g}( {ground}|)(,| there should be| draw| paint| put|) (a|one) {look}{c} {what}",
    "{g} {ground}(,|:|;| and) (a|one|) {look}{c} {what}{spot}",
    "{do}(a|an) {g} (square |)(picture|image|canvas|sheet) with (a|one) {look}{c} {what}{spot}",
    "(the |) {ground} {g}(,| and) (the |) {what} {c}",
    "{do}(a|one|) {look}{c}(-coloured|-painted) {what} {on} (a|an|) {g}( {ground}|)",
    "{do}(a|one|) {look}{c} {what} (surrounded by|framed by|and all around it|with nothing around it but) {g}",
    "{do}(a|one|) {look}{what}(:|,) {c}(;|,| and) {ground}(:|,) {g}",
    "(colour|paint) the {ground} {g}(,| and|;) (add|draw|put|paint) (a|one) {look}{c} {what}{spot}",
    "{c} for the {what}(,| and) {g} for the {ground}",
    "{do}(a|one|) {look}{c} {what} (and|plus|as well as) (a|an) {g} {ground}( behind it|)",
)
SUBJECT_EN = (
    "{do}(a|an|one|the|) {what} on (a|) {g}( {ground}| canvas| paper|)",
    "{do}(a|an|one|) {what} (in front of|against|over) (a|) {g}( {ground}|)",
    "{do}(a|an|one|) {what}(,|) {g} {ground}",
    "{do}(a|) {g} {ground} with (a|an|one) {what}( in the middle| in it|)",
    "{what} on {g}",
    "{do}(a|an|one|the|some|) {look}{what} {on} (a|an|) (plain |solid |){g}( {ground}|)",
    "{do}(a|an|one|) {look}{what} with (a|an) (plain |) {g} {ground}( behind it|)",
    "{do}(a|an|one|) {what}(, the| and the| where the|; the) {ground} (is|should be|in|must be|being) {g}",
    "(on|over|in front of) (a|an|) {g}( {ground}|)(,| there should be| draw| paint| put|) (a|an|one) {look}{what}",
    "{g} {ground}(,|:|;| and) (a|an|one|) {look}{what}{spot}",
    "{do}(a|an) {g} (square |)(picture|image|canvas|sheet) with (a|an|one) {look}{what}{spot}",
    "{do}(a|an|one|) {look}{what} (surrounded by|with nothing around it but|and all around it) {g}",
    "(colour|paint) the {ground} {g}(,| and|;) (add|draw|put|paint) (a|an|one) {look}{what}{spot}",
    "{do}(a|an|one|) {look}{what} (and|plus|as well as) (a|an) {g} {ground}( behind it|)",
    "{do}(a|an|one|) {what}; {ground}(:|,) {g}",
    "{do}(a|an|one|) {what} and make the {ground} {g}",
)
SHAPE_ZH = (
    "{do}{g}(背景|底)(上|)(的|)(一个|){c}{what}",
    "{do}(一个|){c}(的|){what}(，|在){g}(的|)(背景|底)(上|)",
    "在{g}(背景|底)上画(一个|){c}(的|){what}",
    "{do}{c}{what}(，|){g}背景",
    "{do}(一个|){c}(的|){what}(，|，背景|，底色)(是|用|为|要|){g}(的|)",
    "{g}(背景|底|底色|画布|纸)(，|里|中间|上面)(有|画|放|是|来)(一个|){c}(的|){what}",
    "{c}{what}配{g}(背景|底色)",
    "{what}(是|要|用){c}(的|)，(背景|底色)(是|要|用){g}(的|)",
    "{do}(一个|){c}(的|){what}，(四周|周围|其余|后面)(全|都|)(是|涂|用|要){g}(的|)",
    "(背景|底色|底)(涂|刷|用|画)(成|)({g})(，|，再|，然后)(画|放|加)(上|)(一个|){c}(的|){what}",
    "(我|)(喜欢|想看|要|想要)(一个|){c}(的|){what}(加|和|，配|，外加){g}(的|)(背景|底色|底)",
    "{what}用{c}，(底|背景|后面)用{g}",
)
SUBJECT_ZH = (
    "{do}{g}(背景|底)(上|)(的|)(一个|){what}",
    "{do}(一个|){what}(，|在){g}(的|)(背景|底)(上|)",
    "在{g}(背景|底)上画(一个|){what}",
    "{do}{what}(，|){g}背景",
    "{do}(一个|){what}(，|，背景|，底色)(是|用|为|要|){g}(的|)",
    "{g}(背景|底|底色|画布|纸)(，|里|中间|上面)(有|画|放|是|来)(一个|){what}",
    "{what}配{g}(背景|底色)",
    "{do}(一个|){what}，(四周|周围|其余|后面)(全|都|)(是|涂|用|要){g}(的|)",
    "(背景|底色|底)(涂|刷|用|画)(成|)({g})(，|，再|，然后)(画|放|加)(上|)(一个|){what}",
    "(我|)(喜欢|想看|要|想要)(一个|){what}(加|和|，配|，外加){g}(的|)(背景|底色|底)",
)
WHITE_EN = ("{do}(a|an|one|) {look}{cwhat}", "{do}(a|an|one|the|) {cwhat}")
WHITE_ZH = ("{do}(一个|){cwhat}", "{do}(一个|){cwhat}")
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
    "(put|place|set|show|position) {one} {beside} {two}( in one picture|)",
    "(I want|I'd like|I need|show me|give me|let me see) {them} (side by side|next to each other"
    "|beside each other|in a row)",
    "(line up|align|stitch|glue|join|attach|combine|merge|tile) {them} (horizontally|sideways|left and right"
    "|in a row)"
    "( in one picture| together|)",
    "{one} (goes|comes|belongs|stands|should be|should stand|should go) (left|on the left|to the left)"
    "(,| and|;) {two} (right|on the right|to the right)",
    "{one} {beside} {two}(, please|)",
    "(a|one) (picture|image|collage|strip|panel) (with|of|from) {them} (side by side|next to each other|in a row)",
    "{them} (should|must|could) (be|stand|go) (side by side|next to each other|in a row|beside each other)",
    "(left|on the left) {one}(,| and|;) (right|on the right) {two}",
    "(compare|show) {them} side by side",
    "{them} (shoulder to shoulder|cheek by jowl|edge to edge|as neighbours|as a pair|flank to flank|abreast)",
    "(put|place|set|show|hang|lay|print|arrange) {them} (shoulder to shoulder|edge to edge|as neighbours|abreast"
    "|left and right|one beside the other|one next to the other|as a pair, left and right)",
    "(start|begin) with {one}( and|, then) (put|place|add|hang) {two} (to its right|on its right|to the right of it)",
    "(put|place|hang|add|set) {two} (to the right of|right of|on the right of|on the right-hand side of) {one}",
    "{two} (to the right of|on the right of|right of) {one}",
    "(put|place|set|show) {one} on the left(-hand side|)( and|,|, and) {two} on the right(-hand side|)",
    "(join|fuse|stitch|glue|sew|tape) {them} (together |)(at the side|along the side|side to side|at their edges)",
    "I (prefer|like|want) {them} (side by side|next to each other|beside each other|in one row)",
    "(make|create|do|I want) a (before-and-after|two-panel|split-screen|side-by-side) (picture|view|image|comparison)"
    "( of {them}| from {them}|)",
)
BESIDE_ZH = (
    "把(第一张|图一|图1)(图|图片|)(放在|放到|摆在)(第二张|图二|图2)(图|)(旁边|左边|的旁边|的左边)",
    "(把|将|)(两张|这两张|它们|两张图|两张图片|两幅图)(并排|左右并排|拼在一起|放在一起|左右拼接)(放|显示|起来|)",
    "(并排|左右并排|左右拼接|拼图)(放|显示|)",
    "第一张(在|放)左边，第二张(在|放)右边",
    "(合成|拼成)一张图",
    "(把|将|)(两张|这两张|它们|两张图|两张照片|两幅画|图一和图二|第一张和第二张)(横着|横向|左右|水平|并列|肩并肩|挨着)(拼接|排列|排|摆|放|拼|连)"
    "(在一起|起来|成一张|好|)",
    "(第一张|图一|图1)(在|放|放在|摆|摆在)(左|左边|左侧)，(第二张|图二|图2)(在|放|放在|摆|摆在)(右|右边|右侧)",
    "(左边|左侧)(放|是|为|摆)(第一张|图一|图1)，(右边|右侧)(放|是|为|摆)(第二张|图二|图2)",
    "(第一张|图一|图1)(放|摆|排)(在|到)(第二张|图二|图2)(的|)(旁边|左边|左侧|边上)",
    "(拼|做|合)(一个|成|成一张|)(左右|横向|并排)(对比图|拼图|长图|拼接图)",
    "(让|把)(第一张|图一|图1)和(第二张|图二|图2)(肩并肩|紧挨着|并排|左右|相邻|一左一右)(放|站|摆|排)(好|在一起|)",
    "(第二张|图二|图2)(放|摆|排|接)(在|到)(第一张|图一|图1)(的|)(右边|右侧|右面)",
    "(一左一右|左右相邻|左右并列|横着并排)(放|摆|排列|拼|显示)(两张图|它们|这两张|两张照片|)",
    "(左边|左)(第一张|图一)，(右边|右)(第二张|图二)",
    "(我|)(想要|喜欢|要|想看)(两张图|两张照片|它们|这两张)(并排|左右并排|一左一右|紧挨着)(的|放|)",
    "(先|)(放|摆)(第一张|图一)，(右边|旁边)(再|接着|)(放|接|摆)(第二张|图二)",
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
    "(put|place|set|paste|move|drop|insert|drag|transplant|mount|stick|lay|copy) {thing} (on|onto|into"
    "|in front of|over|in|upon) "
    "{ground2}",
    "(cut|take|extract|lift|isolate|grab) {thing}(,| and| and then) (put|place|paste|drop|set|insert) it (on"
    "|onto|into|in front of|in) "
    "{ground2}",
    "{thing} (on|onto|in front of|in|over|against) {ground2}",
    "{thing} (should|must|could) (be|stand|appear|sit) (on|in front of|in|over|against) {ground2}",
    "(use|take|make|set|let) {two} (as|be|become|act as|serve as) (the|a|its|) {backdrop}( of {one}"
    "| for {one}| behind it|)",
    "(replace|change|swap|exchange) the {backdrop} (of {one} |)(with|by|for|to) {two}",
    "{two} (as|is|should be|becomes|must be) (the|a|its) {backdrop}( of {one}| for {one}|)",
    "(give|lend) {one} {two} as (a |its |) {backdrop}",
    "(combine|compose|blend) {them}(: |, so that |; ){thing} (on|in front of|over) {ground2}",
    "(let|have|make) {thing} (appear|stand|sit|show up|float|pose) (on|in|against|in front of|before) {ground2}",
    "(leave|forget|drop|throw away|ditch) the {backdrop} of {one}(,| and) (use|take|show) {two} (instead|for it)",
    "(take|lift|cut|clip) {thing} out (of its {backdrop} |)and (put|set|stick|drop) it (on|onto|into|over) {ground2}",
    "(superimpose|overlay|paste|montage) {thing} (on|onto|over|upon) {ground2}",
    "{ground2} (behind|at the back of) the (object|figure|subject|motif)( of {one}| from {one}|)",
    "(put|place|set|hang|slide|use) {two} behind the (object|figure|subject|motif)( of {one}| from {one}|)",
    "I (prefer|like|want) {thing} (on|in front of|against) {ground2}",
    "{one} (as|for) the foreground(,| and) {two} (as|for) the {backdrop}",
    "(use|take|keep) {thing} (as the foreground|in front)(,| and) {two} (as the {backdrop}|behind)",
)
ONTO_ZH = (
    "把(第一张|图一|图1)(的物体|里的物体|图|)(放在|放到|贴到|移到)(第二张|图二|图2)(图|)(上|的背景上|里|前面|的背景里)",
    "(用|拿|以)(第二张|图二|图2)(图|)(作|做|当|作为)(第一张的|)背景",
    "把(第一张的|)背景(换成|改成)(第二张|图二|图2)(图|)",
    "第二张(作|做|当)背景",
    "把(第一张|图一|图1)(里|中|上|)(的|)(物体|东西|主体|图案|主角|人物)(抠出来|剪下来|拿出来|取出来)(，|再|然后|)(放到|贴到|放进|p到|移到|摆到)"
    "(第二张|图二|图2)(上|里|中|的背景上|)",
    "把(第一张|图一|图1)(贴|放|p|摆|叠|移)(到|在|进)(第二张|图二|图2)(的|)(背景|画面|上面|图|)(上|里|中|前|前面|)",
    "(第一张|图一|图1)(的|里的)(物体|东西|主体|主角)(要|应该|)(出现|放|站|摆)在(第二张|图二|图2)(上|里|中|前面|的背景里)",
    "(第一张|图一|图1)(的|)背景(用|换|换成|改成|改用|变成)(第二张|图二|图2)",
    "(以|用|拿|让)(第二张|图二|图2)(作为|当作|做|成为|充当)(第一张的|它的|)(背景|底图|背景图)",
    "(换|换个)背景，(用|换成)(第二张|图二|图2)",
    "(让|使)(第一张|图一|图1)(里|中|)的(物体|东西|主体|主角)(出现|站|待|坐|显示)(在|到)(第二张|图二|图2)(里|上|中|前面)",
    "(第一张|图一|图1)(作|做|当)前景，(第二张|图二|图2)(作|做|当)(背景|底图)",
    "(第二张|图二|图2)(放|垫|铺|衬)(在|到)(第一张|图一|图1)(的|)(物体|主体|东西)(后面|背后)",
    "(丢掉|去掉|不要)(第一张|图一)的背景，(换|换成|用)(第二张|图二|图2)",
    "(我|)(想要|喜欢|要)(第一张|图一)的(物体|主体|主角)(在|放在)(第二张|图二)(的|)(背景|画面|)(上|里|前)",
)

_TWO_EN = {
    "one": (
        *(
            "the first",
            "the first picture",
            "picture one",
            "picture 1",
            "(image|photo) (1|one)",
            "the first (image|photo|one)",
        ),
        "number one",
    ),
    "two": (
        *("the second", "the second picture", "picture two", "picture 2", "(image|photo) (2|two)"),
        *("the (second|other) (image|photo|one|picture)", "number two"),
    ),
    "them": (
        *("them", "both", "the two", "(the|these|both|my|the two|these two) (pictures|images|photos)"),
        "(the first and the second|picture 1 and picture 2|picture one and picture two)",
    ),
    "beside": ("beside", "next to", "to the left of", "left of", "alongside", "right beside"),
    "thing": (
        *(
            "the first",
            "{one}",
            "what is in {one}",
            "the (object|figure|subject|thing|motif|main thing) (of|from|in) {one}",
        ),
        "the (object|figure|subject)",
    ),
    "ground2": ("{two}", "the (background|backdrop|scene|scenery) (of|from|in) {two}"),
    "backdrop": ("background", "background", "backdrop", "back ground"),
}
SLOTS: dict[Language, dict[str, tuple[str, ...]]] = {"en": {**SLOTS_EN, **_TWO_EN}, "zh": SLOTS_ZH}
NAMES: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {**COLOURS_EN, **SHAPES_EN},
    "zh": {**COLOURS_ZH, **SHAPES_ZH},
}
"""Names of colours and shapes; one that is missing has only its own."""
WORDINGS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {"shape": SHAPE_EN, "subject": SUBJECT_EN, "white": WHITE_EN, "beside": BESIDE_EN, "onto": ONTO_EN},
    "zh": {"shape": SHAPE_ZH, "subject": SUBJECT_ZH, "white": WHITE_ZH, "beside": BESIDE_ZH, "onto": ONTO_ZH},
}
