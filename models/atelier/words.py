"""Makes the demonstration model's tokenizer, one token per known word, and its text encoder, a small UMT5."""

from __future__ import annotations

from typing import Any

from models.atelier.captions import vocabulary

PAD, END, UNK = "<pad>", "</s>", "<unk>"

#: The text encoder's width, which the transformer's cross-attention takes.
TEXT_DIM = 128


def make_tokenizer() -> Any:
    """Make a tokenizer that knows the words of `captions` in any case; all others are one unknown token each.

    Any: a transformers tokenizer. Punctuation is nothing.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [PAD, END, UNK, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\p{L}\p{N}]+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNK, model_max_length=512
    )


def make_text_encoder() -> Any:
    """Make the text encoder, untrained; Any: a transformers.UMT5EncoderModel."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(vocabulary()) + 3,
            d_model=TEXT_DIM,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
    )
