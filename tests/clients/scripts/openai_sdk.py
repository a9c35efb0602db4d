"""The openai SDK: base64 (its default) and float, sync and async; `-query` and `-passage` stand for input_type."""

import asyncio
import json
import sys

import openai

given = json.load(sys.stdin)
client = openai.OpenAI(base_url=f"{given['url']}/v1", api_key="not-used")
query, passage = f"{given['model']}-query", f"{given['model']}-passage"


def vectors(answer):
    return [item.embedding for item in sorted(answer.data, key=lambda item: item.index)]


async def ask():
    asynchronous = openai.AsyncOpenAI(base_url=f"{given['url']}/v1", api_key="not-used")
    return vectors(await asynchronous.embeddings.create(model=passage, input=given["texts"]))


def refusal(**body):
    try:
        client.embeddings.create(**body)
    except openai.APIStatusError as error:
        return [error.status_code, error.response.text]
    return None


plain = client.embeddings.create(model=passage, input=given["texts"])
print(
    json.dumps(
        {
            "models": [model.id for model in client.models.list()],
            "base64": vectors(plain),
            "usage": plain.usage.model_dump(),
            "float": vectors(client.embeddings.create(model=passage, input=given["texts"], encoding_format="float")),
            "async": asyncio.run(ask()),
            "query": vectors(client.embeddings.create(model=query, input=given["texts"][0])),
            "extra_body": vectors(
                client.embeddings.create(
                    model=given["model"], input=given["texts"][0], extra_body={"input_type": "query", "truncate": "END"}
                )
            ),
            "short": vectors(client.embeddings.create(model=query, input=given["texts"][0], dimensions=32)),
            "too_long": refusal(model=query, input="word " * 500),
            "unknown": refusal(model="another-model", input="text"),
        }
    )
)
