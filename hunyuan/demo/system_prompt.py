"""System prompts of the demo checkpoint, in the layout of the official file."""

unified_system_prompt_en = "You edit pictures."

t2i_system_prompts = {
    "en_vanilla": [unified_system_prompt_en],
    "en_recaption": [unified_system_prompt_en],
    "en_think_recaption": [unified_system_prompt_en],
}


def get_system_prompt(sys_type, bot_task, system_prompt=None):
    """What the authors' own code asks this file for: the same prompt for everything, or the caller's."""
    return {"None": None, "custom": system_prompt}.get(sys_type, unified_system_prompt_en)
