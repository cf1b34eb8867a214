"""A small service in our dressing that runs into the framework's own limits; only the tests serve it."""

from __future__ import annotations

import asyncio

import bentoml

from hunyuan.serving.app import AppHooks, service_class


@bentoml.service(
    name="Impatient",
    service_class=service_class(AppHooks(1000, lambda: None, lambda: "impatient", lambda record: None, lambda: None)),
    traffic={"timeout": 1, "max_concurrency": 1},
    logging={"access": {"enabled": False}},
)
class Impatient:
    @bentoml.api(route="/edit")
    async def edit(self) -> str:
        await asyncio.sleep(30)
        return "too late"
