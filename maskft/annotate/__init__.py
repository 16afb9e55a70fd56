"""Compute entities and weights of words once, when texts become tokens.

    annotator = Entities(SpacyEntities("en_core_web_sm"))

    def rows(batch):
        encoded = tokenizer(batch["text"], truncation=True, return_offsets_mapping=True)
        return {**encoded, **annotator.columns(batch["text"], encoded)}

    dataset = dataset.map(rows, batched=True)  # datasets caches it: epochs pay nothing

``Entities`` writes the column "entity_ids" (which entity each token is in, -1 for none), which
strategy="entity" reads; ``Keywords`` writes "keyword_weights" for strategy="keyword"; ``WordIds``
writes "word_ids". Each takes a function from texts to spans of characters: a spaCy pipeline, a list
of names (``Gazetteer``), TF-IDF, YAKE, your own. What such a function finds depends only on its
arguments, and so do the bytes that it pickles to: ``datasets`` names its cache by those, so that a
later process finds what an earlier one has computed.
"""

from maskft.annotate.chinese import JiebaWords
from maskft.annotate.columns import Entities, Keywords, Together, WordIds
from maskft.annotate.gazetteer import Gazetteer
from maskft.annotate.spacy import SpacyEntities
from maskft.annotate.spans import entity_ids, entity_ids_from_tokens, token_weights
from maskft.annotate.weights import WordWeights, YakeWeights, tfidf_weights

__all__ = [
    "Entities",
    "Gazetteer",
    "JiebaWords",
    "Keywords",
    "SpacyEntities",
    "Together",
    "WordIds",
    "WordWeights",
    "YakeWeights",
    "entity_ids",
    "entity_ids_from_tokens",
    "tfidf_weights",
    "token_weights",
]
