"""langchain-nvidia-ai-endpoints: NVIDIAEmbeddings and NVIDIARerank, as its own integration tests use them."""

import json
import sys
import warnings

warnings.simplefilter("ignore")

from langchain_core.documents import Document  # noqa: E402
from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings, NVIDIARerank  # noqa: E402

given = json.load(sys.stdin)
url = f"{given['url']}/v1"


def refusal(call):
    try:
        call()
    except Exception as error:
        return str(error)
    return None


def ranked(rerank, query, passages):
    found = rerank.compress_documents([Document(page_content=text) for text in passages], query)
    return [[document.page_content, document.metadata["relevance_score"]] for document in found]


if given["task"] == "embed":
    embedder = NVIDIAEmbeddings(base_url=url, model=given["model"])
    discovered = NVIDIAEmbeddings(base_url=url)
    answer = {
        "discovered": discovered.model,
        "documents": embedder.embed_documents(given["texts"]),
        "query": embedder.embed_query(given["texts"][0]),
        "too_long": refusal(lambda: embedder.embed_documents(["nvidia " * 10240])),
        "start": len(
            NVIDIAEmbeddings(base_url=url, model=given["model"], truncate="START").embed_query("nvidia " * 2048)
        ),
        "end": len(
            NVIDIAEmbeddings(base_url=url, model=given["model"], truncate="END").embed_documents(["nvidia " * 10240])[0]
        ),
        "short": len(NVIDIAEmbeddings(base_url=url, model=given["model"], dimensions=32).embed_query("text")),
        "huge": len(NVIDIAEmbeddings(base_url=url, model=given["model"], dimensions=102400).embed_query("text")),
        "negative": refusal(
            lambda: NVIDIAEmbeddings(base_url=url, model=given["model"], dimensions=-1).embed_query("x")
        ),
    }
else:
    query, passages = given["query"], given["passages"]
    whole = NVIDIARerank(base_url=url, model=given["model"], top_n=len(passages))
    answer = {
        "models": [model.id for model in whole.available_models],
        "whole": ranked(whole, query, passages),
        "top": ranked(NVIDIARerank(base_url=url, model=given["model"], top_n=2), query, passages),
        "batched": {},
        "truncated": len(
            ranked(NVIDIARerank(base_url=url, model=given["model"], truncate="END"), query, ["word " * 2048])
        ),
        "too_long": refusal(lambda: ranked(whole, query, ["word " * 10240])),
    }
    for size in (1, 2, 3, 5, 8, 17):
        rerank = NVIDIARerank(base_url=url, model=given["model"], top_n=len(passages), max_batch_size=size)
        answer["batched"][size] = ranked(rerank, query, passages)
print(json.dumps(answer))
