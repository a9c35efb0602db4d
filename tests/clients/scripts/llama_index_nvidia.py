"""llama-index: NVIDIAEmbedding and NVIDIARerank."""

import json
import sys
import warnings

warnings.simplefilter("ignore")

from llama_index.core.schema import NodeWithScore, TextNode  # noqa: E402

given = json.load(sys.stdin)
url = f"{given['url']}/v1"
if given["task"] == "embed":
    from llama_index.embeddings.nvidia import NVIDIAEmbedding

    embedder = NVIDIAEmbedding(base_url=url, model=given["model"], truncate="END")
    answer = {
        "documents": embedder.get_text_embedding_batch(given["texts"]),
        "query": embedder.get_query_embedding(given["texts"][0]),
    }
else:
    from llama_index.postprocessor.nvidia_rerank import NVIDIARerank

    rerank = NVIDIARerank(base_url=url, model=given["model"], top_n=len(given["passages"]))
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in given["passages"]]
    found = rerank.postprocess_nodes(nodes, query_str=given["query"])
    answer = {"whole": [[node.text, float(node.score)] for node in found]}
print(json.dumps(answer))
