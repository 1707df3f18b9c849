"""Inside the libraries that users train with: transformers, its Trainer, accelerate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gnlorp import GradNormLoRPAdamW, NormLowRankLinear, attach, merge, param_groups

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert():
    config = transformers.BertConfig(vocab_size=90, **SMALL)
    return transformers.BertForSequenceClassification(config), [
        "query",
        "key",
        "value",
        "output.dense",
        "intermediate.dense",
    ]


def roberta():
    config = transformers.RobertaConfig(vocab_size=90, **SMALL)
    targets = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    return transformers.RobertaForSequenceClassification(config), targets


def llama():
    config = transformers.LlamaConfig(vocab_size=90, **SMALL)
    return transformers.LlamaForCausalLM(config), ["self_attn.*_proj", "mlp.*_proj"]


def batch(model):
    torch.manual_seed(3)
    tokens = torch.randint(3, 90, (4, 12))
    causal = model.config.model_type == "llama"
    return {"input_ids": tokens, "labels": tokens if causal else torch.tensor([0, 1, 1, 0])}


def build(make):
    torch.manual_seed(0)
    model, targets = make()
    return model.eval(), targets


def train(model, optimizer, steps):
    losses = []
    for _ in range(steps):
        loss = model(**batch(model)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("make", [bert, roberta, llama])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_start_train_and_merge(make, dtype, tmp_path):
    model, targets = build(make)
    model = model.to(dtype)
    plain = copy.deepcopy(model)
    names = attach(model, targets, 4, 8.0)
    assert len(names) == (14 if make is llama else 12)
    assert torch.equal(model(**batch(model)).logits, plain(**batch(plain)).logits)
    optimizer = GradNormLoRPAdamW(param_groups(model, 2, lr=1e-2, refresh_gap=5))
    losses = train(model, optimizer, 12)
    assert losses[-1] < losses[0]
    before = model(**batch(model)).logits
    merge(model)
    after = model(**batch(model)).logits
    assert (after - before).norm() / before.norm() < (1e-5 if dtype == torch.float32 else 2e-2)
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype).eval()
    saved = model.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    if dtype == torch.float32:
        assert torch.equal(loaded(**batch(loaded)).logits, after)


@pytest.mark.parametrize("make", [bert, llama])
def test_activation_checkpointing_of_the_model(make):
    found = []
    for enabled in (False, True):
        model, targets = build(make)
        attach(model, targets, 4, 8.0)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if enabled:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        optimizer = GradNormLoRPAdamW(param_groups(model, 2, lr=1e-2))
        train(model, optimizer, 3)
        found.append([parameter.detach() for parameter in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_a_model_with_tied_embeddings():
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=90, tie_word_embeddings=True, **SMALL))
    with pytest.raises(ValueError, match="lm_head"):
        attach(model, ["q_proj", "lm_head"], 4, 8.0)
    plain = copy.deepcopy(model)
    attach(model, ["q_proj"], 4, 8.0)
    assert torch.equal(model(**batch(model)).logits, plain(**batch(plain)).logits)
    train(model, GradNormLoRPAdamW(param_groups(model, 2, lr=1e-2)), 2)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.slow
def test_compile_of_a_model():
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        model, targets = build(llama)
        attach(model, targets, 4, 8.0)
        run = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = GradNormLoRPAdamW(param_groups(model, 2, lr=1e-2))
        found.append(train(run, optimizer, 4))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.slow
def test_inside_the_trainer(tmp_path):
    pytest.importorskip("accelerate")
    model, targets = build(roberta)
    attach(model, targets, 4, 8.0, dropout=0.1)
    rows = [{"input_ids": [3 + i % 7, 4, 5 + i % 5, 6], "labels": i % 2} for i in range(32)]
    optimizer = GradNormLoRPAdamW(param_groups(model, 2, lr=5e-3, refresh_gap=3))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8)

    def trainer(steps):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            logging_steps=1, save_steps=4, report_to=[], use_cpu=True, seed=1,
        )  # fmt: skip
        return transformers.Trainer(model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, schedule))

    result = trainer(8).train()
    assert result.global_step == 8
    assert torch.isfinite(torch.tensor(result.training_loss))
    assert {state["step"] for state in optimizer.state.values()} <= {7, 8}
    assert all(isinstance(m, NormLowRankLinear) for n, m in model.named_modules() if n.endswith(".query"))
    saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert saved["state"]


def test_under_accelerate():
    accelerate = pytest.importorskip("accelerate")
    model, targets = build(bert)
    attach(model, targets, 4, 8.0)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(model, GradNormLoRPAdamW(param_groups(model, 2, lr=1e-2)))
    before = model.bert.encoder.layer[0].attention.self.query.factor_out.detach().clone()
    for _ in range(4):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch(model)).loss)
            optimizer.step()
            optimizer.zero_grad()
    held = optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer
    layer = model.bert.encoder.layer[0].attention.self.query
    assert held.state[layer.magnitude]["step"] == 2
    assert not torch.equal(layer.factor_out, before)
