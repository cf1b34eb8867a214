"""What an edit's answer looks like, in a few words, and sentences that ask for any such answer; English and Chinese.

`{result}` in a sentence stands for one of an edit's results. Written like `wordings_en.py`, which has each edit's own
wordings.
"""

from __future__ import annotations

RESULTS_EN: dict[str, tuple[str, ...]] = {
    "bw": (
        *("(in |){bw}", "without (any |){colours}", "in shades of (grey|gray)", "with no {colours}", "colourless"),
        *("(completely |fully |) desaturated", "monochrome", "stripped of {colours}", "in plain {bw}", "all {bw}"),
    ),
    "sepia": (
        *(
            "(in |with |)sepia( tones|)",
            "(old|vintage|antique|aged|old-fashioned|nostalgic)",
            "like an old (photo|photograph)",
        ),
        *("in (brownish|yellowed|faded brown) tones", "as an old (photo|photograph)", "yellowed (with age|)"),
        *("like (something |)from (the past|long ago|another century|old times)", "in (a |)(retro|vintage) style"),
    ),
    "invert": (
        *(
            "inverted",
            "as a (film |photo |)negative",
            "with inverted {colours}",
            "in (the |)opposite {colours}",
            "negative",
        ),
        *("with (all |)(the |){colours} reversed", "with {colours} flipped", "like a (film |)negative"),
    ),
    "brighter": (
        *(
            "(brighter|lighter|better lit|more luminous|less dark)",
            "with more (light|brightness|exposure)",
            "brightened( up|)",
        ),
        *("less (gloomy|dim)", "as bright as possible", "well lit", "lightened( up|)", "not so dark"),
    ),
    "darker": (
        *(
            "(darker|dimmer|less bright|gloomier)",
            "with less (light|brightness|exposure)",
            "darkened",
            "dimmed( down|)",
        ),
        *("not so bright", "less (light|luminous)", "a shade darker", "shadier"),
    ),
    "contrast": (
        *("with (more|stronger|higher|extra|increased|enhanced) contrast", "(more contrasty|punchier|more contrasted)"),
        *("higher in contrast", "with deeper (blacks|shadows) and brighter (whites|highlights)", "less flat"),
    ),
    "flat": (
        *("with (less|weaker|lower|reduced|softer) contrast", "(flatter|less contrasty|less contrasted|less harsh)"),
        *("lower in contrast", "with softer shadows", "more even"),
    ),
    "warmer": (
        *("(warmer|more golden|warm)", "in (warm|warmer|golden) (light|tones|colours|colors)", "less cold"),
        *(
            "with (a |)(warm|warmer|golden) (light|tone|glow|tint)",
            "like (in |)(the |)(evening sun|sunset|late afternoon)",
        ),
    ),
    "cooler": (
        *("(cooler|colder|icier|cold)", "in (cool|cooler|cold|icy) (light|tones|colours|colors)", "less warm"),
        *("with (a |)(cool|cold|bluish|icy) (light|tone|mood)", "like (in |)(winter|a cold morning|the Arctic)"),
    ),
    "vivid": (
        *(
            "(more colourful|more colorful|more vivid|more saturated|more vibrant|vivid|livelier)",
            "less (pale|dull|washed out)",
        ),
        *("with (stronger|richer|more intense|brighter and richer|deeper|bolder) {colours}", "with more saturation"),
    ),
    "pale": (
        *(
            "(less colourful|less colorful|less vivid|less saturated|paler|more muted|subdued)",
            "less (gaudy|garish|loud)",
        ),
        *(
            "with (weaker|paler|softer|fainter|muted|faded) {colours}",
            "with less saturation",
            "(half|partly) desaturated",
        ),
    ),
    "tint": (
        *(
            "in {c}( tones| shades| hues| only|)",
            "tinted( in|) {c}",
            "(all|entirely|completely|wholly) {c}",
            "toned {c}",
        ),
        *("with (a|an|some) {c} (tint|cast|tone|filter|hue|overlay)", "coloured {c}", "through {c} glass"),
    ),
    "mirror": (
        *("mirrored", "(horizontally flipped|flipped horizontally|flipped sideways)", "as a mirror image", "reflected"),
        *(
            "with left and right (swapped|reversed|exchanged)",
            "facing the other way",
            "the other way round",
            "like in a mirror",
        ),
    ),
    "upside": (
        *("upside down", "(vertically flipped|flipped vertically)", "on its head", "head down", "turned over"),
        *("with top and bottom (swapped|reversed|exchanged)", "standing on its head", "bottom up"),
    ),
    "left": (
        *(
            "(rotated|turned) (to the left|left|counterclockwise|anticlockwise)( by 90 degrees|)",
            "a quarter turn to the left",
        ),
        *("(rotated|turned) 90 degrees (left|counterclockwise|to the left)", "lying on its left side"),
    ),
    "right": (
        *(
            "(rotated|turned) (to the right|right|clockwise)( by 90 degrees|)",
            "a quarter turn to the right",
            "on its side",
        ),
        *("(rotated|turned) 90 degrees( right| clockwise| to the right|)", "rotated (by |)a quarter"),
    ),
    "blur": (
        *(
            "(blurred|blurry|out of focus|fuzzy|soft|hazy|unsharp|smeared|less sharp)",
            "with (a |some |)(blur|soft focus)",
        ),
        *("(softened|defocused|smoothed)", "like through (fog|frosted glass|a dirty lens)"),
    ),
    "sharpen": (
        *(
            "(sharper|crisper|clearer|sharpened|in sharper focus|less blurry|less soft)",
            "with (more|better) (sharpness|detail)",
        ),
        *("with (sharper|clearer|crisper) (edges|details|lines|contours)", "better focused"),
    ),
    "pixelate": (
        *(
            "(pixelated|blocky|pixelised)",
            "(in|with|made of|out of) (big|large|chunky|coarse|huge) (pixels|squares|blocks|tiles)",
        ),
        *("as (a mosaic|pixel art)", "like (a mosaic|pixel art|an old video game|8-bit graphics)", "in low resolution"),
    ),
    "background": (
        *("on (a|an|) (plain |solid |) {c}( {background}|)", "with (a|an|) (plain |solid |) {c} {background}"),
        *("in front of (a|an|) {c}( wall| {background}| surface|)", "with the {background} in {c}", "against {c}"),
        *("with {c} behind (it|the object)", "with (a|an|its) {background} (that is |coloured |){c}"),
    ),
    "frame": (
        *(
            "with (a|an|) (thick |) {c} {frame}( around it|)",
            "in (a|an) {c} {frame}",
            "framed in {c}",
            "with {c} edges",
        ),
        *("surrounded by (a|an|) {c} ({frame}|line|edge)", "bordered in {c}", "with (a|an) {c} {frame} all around"),
    ),
}

FRAMES_EN = (
    "~I(| would| 'd|'d) (like|love|want|need|prefer|rather have) (to have |to see |to get |){pic} {result}",
    "~(can|could|may|might) (I|we|you) (have|get|see|show me|give me|do) {pic} {result}",
    "let {pic} (be|look|appear|become|come out) {result}",
    "~{pic} (should|must|ought to|has to|needs to|could|might) (be|look|appear|become|come out) {result}",
    "(show|give|render|present|hand|bring) me {pic} {result}",
    "~(what|how) (would|does|will) {pic} look (like |){result}",
    "~(the same|the same {noun}|same thing|this again)(,| but| only| just|) {result}",
    "~{pic}(,|) (but|only|just|now|simply|all) {result}",
    "(return|output|produce|make|create|deliver) (a version of |){pic} {result}",
    "(have|get|render|make|redo|paint|print) {pic} {result}",
    "~{result} (would be|is|looks|might be) (nice|great|better|best|perfect|what I (want|need)|fine|good)",
    "~(how about|what about|try|maybe|perhaps|rather|simply) {result}",
    "~I (imagine|think|feel|believe|wish) {pic} (should be|would look better|looks best|was|were) {result}",
    "~{result}",
    "~it (would|will) look (better|nicer) {result}",
    "~I(| would| 'd|'d) like it better {result}",
    "~my {noun}(,|) {result}",
    "~(a|one|some) (version|copy|edit)(,| that is|) {result}",
)

RESULTS_ZH: dict[str, tuple[str, ...]] = {
    "bw": ("黑白(的|)", "没有颜色(的|)", "只有黑白灰(的|)", "单色(的|)", "不带颜色"),
    "sepia": ("(像|有)老照片(一样|的感觉|那样|)", "复古(的|)", "怀旧(的|)", "发黄(的|)", "旧旧的", "有年代感(的|)"),
    "invert": ("颜色相反(的|)", "反色(的|)", "(像|是)(底片|负片)(一样|)(的|)", "颜色反过来"),
    "brighter": ("(更|再|)亮(一点|一些|点|堂|)(的|)", "明亮(一点|一些|)(的|)", "不那么暗", "光线更足"),
    "darker": ("(更|再|)暗(一点|一些|点|)(的|)", "昏暗(一点|)(的|)", "不那么亮", "光线更少"),
    "contrast": ("对比(度|)(更|再|)(强|高|大|强烈)(一点|一些|)(的|)", "明暗更分明", "反差更大"),
    "flat": ("对比(度|)(更|再|)(弱|低|小|柔和)(一点|一些|)(的|)", "反差更小", "明暗更接近"),
    "warmer": ("(更|再|)暖(一点|一些|和|)(的|)", "暖色调(的|)", "色调(更|)温暖", "像夕阳(一样|下)", "偏暖"),
    "cooler": ("(更|再|)冷(一点|一些|)(的|)", "冷色调(的|)", "色调(更|)清冷", "像冬天(一样|)", "偏冷"),
    "vivid": ("(颜色|色彩|)(更|再|)(鲜艳|艳丽|鲜明|浓郁|饱满)(一点|一些|)(的|)", "饱和度更高", "色彩更丰富"),
    "pale": ("(颜色|色彩)(更|再|)(淡|浅|素雅|柔和)(一点|一些|)(的|)", "饱和度更低", "没那么鲜艳"),
    "tint": ("{c}(调|色调)(的|)", "(全|整体|全部)(是|变|带|)(着|){c}(的|)", "带{c}色调", "染上{c}", "蒙上一层{c}"),
    "mirror": ("左右(相反|颠倒|互换|翻转|对调|反转)(的|)", "镜像(的|)", "像(在|)镜子里(一样|)", "水平翻转(的|)"),
    "upside": ("上下(相反|颠倒|互换|翻转|对调|反转)(的|)", "倒过来(的|)", "头朝下", "倒立(的|)", "垂直翻转(的|)"),
    "left": ("(向左|往左|逆时针)(旋转|转|转个)(90度|九十度|四分之一圈|)(的|)",),
    "right": ("(向右|往右|顺时针)(旋转|转|转个)(90度|九十度|四分之一圈|)(的|)",),
    "blur": ("(更|再|)(模糊|朦胧|虚|柔和)(一点|一些|)(的|)", "失焦(的|)", "看不清细节", "雾蒙蒙的"),
    "sharpen": ("(更|再|)(清晰|锐利|清楚)(一点|一些|)(的|)", "细节更(清晰|清楚|突出|锐利)", "边缘更(清晰|锐利)"),
    "pixelate": ("像素化(的|)", "像(像素画|马赛克|老游戏)(一样|)(的|)", "一块一块的", "大方块(的|)", "马赛克(的|)"),
    "background": ("{c}(的|)(背景|底色)(的|)", "背景(是|为|变成|改成|换成){c}(的|)", "在{c}背景(上|前)", "配{c}背景"),
    "frame": ("(带|有|加)(一个|一圈|){c}(的|)(边框|相框|框|边)(的|)", "四周(是|有|围){c}(边框|框|边)"),
}

FRAMES_ZH = (
    "~我(想要|喜欢|希望|需要|想让){pic}(是|变得|看起来|变成|){result}",
    "~{pic}(能|能不能|可以|可不可以|应该|最好|要)(变得|变|是|做成|){result}",
    "~(要|来|想要|我要)(一|)(张|个|幅){result}(版本|效果|)",
    "~{result}(会更好|比较好|更好看|就好了|更合适|好不好|行不行|吧)",
    "让{pic}(看起来|看上去|显得|变得|变|){result}",
    "~(同一张图|还是这张图|这张图)，(但|只是|要|但是){result}",
    "{ba}(弄|搞|整|改|调|做)(得|成|){result}",
    "~我觉得{result}(更好|更合适|好看)",
    "~(如果|要是){pic}{result}就好了",
    "~{result}",
    "~(整体|画面|整张)(要|)(变得|){result}",
)
