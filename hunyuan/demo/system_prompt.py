"""System prompts of the demo checkpoint, in the layout of the official file."""

unified_system_prompt_en = "You edit pictures."

t2i_system_prompts = {
    "en_vanilla": [unified_system_prompt_en],
    "en_recaption": [unified_system_prompt_en],
    "en_think_recaption": [unified_system_prompt_en],
}
