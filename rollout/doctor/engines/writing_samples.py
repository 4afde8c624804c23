"""Samples of writing that tokenizers treat differently, and control tokens of other models."""

CONTROL_TOKENS_OF_MODELS = (
    *("<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<mask>", "[INST]", "[/INST]", "<<SYS>>", "[TOOL_CALLS]"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|endofprompt|>", "<|start|>", "<|end|>", "<|message|>"),
    *("<|channel|>", "<|return|>", "<|call|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|image|>", "<|video|>", "<|audio|>", "<image>"),
    *("<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|tool|>", "[gMASK]", "<sop>", "<eop>"),
    *("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<answer>"),
    *("<tools>", "</tools>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    *("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|media_start|>", "<|media_content|>"),
    *("<|media_pad|>", "<|media_end|>", "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
    *("<|tool_call_argument_begin|>", "<|tool_calls_section_end|>", "[BOS]", "[EOS]", "[PAD]", "[UNK]", "[SEP]"),
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>"),
)
"""Control tokens of well-known models. A tokenizer with one of them more than ours gives other ids for its text."""

WRITING_SAMPLES = (
    "The year 1984, 3.14159, 1,234,567.89, -0.5e-10, 0xDEADBEEF, 1/2, 50%, №7, ½ ² ₂ Ⅷ ① ٣٤٥ १२३ 四十二",
    "12345678901234567890 3D 2nd a1b2c3 x86_64 utf8 iPhone15 v1.2.3-rc4",
    "I'm you're he'll we've they'd it's DON'T I'M can’t l'été d’accord rock'n'roll 'quoted' ''two'' O'Neill's",
    "  leading, double  triple   spaces    and\ttabs\t\t, trailing   \n\n\n three lines\r\nCRLF\r\n\r\n CR\rVT\v",
    "FF\f.  \t \n \t\n a  b   c\n d\n  e\n   f\t\tg \t h \u00a0no-break\u2003em\u2009thin\u200bzero\u2060joiner",
    "\u3000ideographic\u2028line\u2029paragraph\u0085next\ufeffmark ",
    "e\u0301 \u00e9 A\u030a \u00c5 \u212b n\u0303o \u1e9b\u0323 q\u0323\u0307 q\u0307\u0323 \uac00 \u1100\u1161 \u11a8",
    "\ufb01 \ufb03 \u2126 \u03a9 \u0958 \u2adc \ufa1a ﷺ ㎏ ㈱ ℌ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚",
    "Ｆｕｌｌ　ｗｉｄｔｈ １２３ ｶﾀｶﾅ カタカナ ＜|x|＞ İstanbul ISTANBUL ıi ß ẞ SS ſ ǅ ΑΣ ας",
    "我们在2024年学习人工智能。「你好，世界！」日本語の文章、ひらがなとカタカナ。𠮷野家 𪚥 㐀 々〆",
    "한국어 문장은 이렇게 씁니다. हिन्दी में लिखना क्षत्रिय বাংলা தமிழ் ภาษาไทยไม่เว้นวรรค ភាសា",
    "مرحبا بالعالم، كيف الحال؟ السَّلَامُ عَلَيْكُمْ ١٢٣ \u202bשלום עולם\u202c שָׁלוֹם",
    "👍 👍🏽 👨\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 🇩🇪🇯🇵 ❤\ufe0f ❤ ☺\ufe0e 1\ufe0f\u20e3",
    "🧑🏿\u200d🚀 \U0001fae8 \U000e0067\U000e007f",
    "def f(x: int = 0, *args, **kwargs) -> dict[str, int]:\n    return {'a': x**2, \"b\": x // 3}  # comment\n\n",
    "\tif (a && b || !c) { i++; } snake_case camelCase PascalCase SCREAMING_CASE kebab-case HTMLParser ___ $$x$$",
    '{"key": [1, 2.5, null, true, {"nested": "\\"escaped\\" \\u00e9 \\n"}], "empty": {}}',
    '<a href="x?y=1&amp;z=2">https://example.com/~user/#top</a>',
    " . , ; : ! ? ( ) [ ] { } . . . ... .. ,, ;; ) . ( ' \" ` ~ @ # $ % ^ & * _ + = | \\ / < >",
    "ᚠᛇᚻ 𐌰𐌱𐌲 𓀀𓂀 ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ བོད་ཡིག ქართული ԱԲԳ አማርኛ ⠓⠑⠇⠇⠕ 𝄞 ꦗꦮ 𞤀𞤁 ☭ ∑∫√∞≠≤ ⟨x⟩ ⇒ ░▒▓ ─│┌ €£¥₿ …—–‐‑",
    "\x00\x01\x02\x07\x08\x0e\x1b[31mred\x1b[0m\x1f\x7f\x80\x9f \ufffd \ufffe \uffff \U0010ffff \ue000 \u0378",
    f"{'a' * 1000} {'ab' * 500}\n{'-' * 300}{'=' * 300}{' ' * 300}x{chr(10) * 100}{'9' * 300}{'!?' * 100}",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 8,
    "漢字仮名" * 200 + "กขค" * 200,
)
"""Digits, contractions, white space, combining characters, scripts, emoji, code, control characters and long words."""
