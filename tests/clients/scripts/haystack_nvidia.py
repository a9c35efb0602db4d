"""haystack: NvidiaTextEmbedder, NvidiaDocumentEmbedder and NvidiaRanker."""

import json
import sys
import warnings

warnings.simplefilter("ignore")

from haystack import Document  # noqa: E402

given = json.load(sys.stdin)
url = f"{given['url']}/v1"
if given["task"] == "embed":
    from haystack_integrations.components.embedders.nvidia import NvidiaDocumentEmbedder, NvidiaTextEmbedder

    text = NvidiaTextEmbedder(model=given["model"], api_url=url, api_key=None)
    documents = NvidiaDocumentEmbedder(model=given["model"], api_url=url, api_key=None, progress_bar=False)
    text.warm_up()
    documents.warm_up()
    found = documents.run([Document(content=content) for content in given["texts"]])
    answer = {
        "query": text.run(given["texts"][0])["embedding"],
        "documents": [document.embedding for document in found["documents"]],
        "meta": found["meta"],
    }
else:
    from haystack_integrations.components.rankers.nvidia import NvidiaRanker

    ranker = NvidiaRanker(model=given["model"], api_url=url, api_key=None, top_k=len(given["passages"]))
    ranker.warm_up()
    found = ranker.run(query=given["query"], documents=[Document(content=text) for text in given["passages"]])
    answer = {"whole": [[document.content, document.score] for document in found["documents"]]}
print(json.dumps(answer, default=str))
