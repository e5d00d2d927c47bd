"""What sequences begin with in common is computed once, and nothing changes by it."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.batch import columns
from rllib_llm_async.models import attention, prefix_attention, shared_prefixes
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.loading import load_causal_lm
from rllib_llm_async.models.shared_prefixes import prefix_tree
from tests.models.families import logp_of_model, packed, tiny_lm


def seen(tree):
    """For each place of the row, the places that it sees, each as often as it does."""
    places = [[] for _ in tree.tokens]
    for queries, keys, is_causal in tree.blocks:
        for query in range(queries.start, queries.stop):
            last = query + 1 if is_causal else keys.stop
            places[query] += range(keys.start, last)
    return places


def grown(draw_lengths, branches, alphabet, seed):
    """Sequences that begin as an earlier one does, up to some point."""
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for length, branch in zip(draw_lengths, branches):
        own = torch.randint(alphabet, (length,), generator=generator)
        if sequences:
            parent = sequences[branch % len(sequences)]
            own = torch.cat([parent[: branch % (len(parent) + 1)], own])
        sequences.append(own)
    return sequences


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.lists(st.integers(0, 60), min_size=8, max_size=8),
    st.sampled_from([2, 50]),
    st.sampled_from([1, 3]),
    st.integers(0, 1000),
)
def test_every_token_sees_its_sequence_up_to_itself_once(
    lengths, branches, alphabet, min_shared, seed
):
    sequences = grown(lengths, branches, alphabet, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_prefixes, "MIN_SHARED_TOKENS", min_shared)
        tree = prefix_tree(torch.cat(sequences), list(map(len, sequences)))
    beginnings = {tuple(s[: n + 1].tolist()) for s in sequences for n in range(len(s))}
    if tree is None:
        assert min_shared > 1 or len(beginnings) == sum(map(len, sequences))
        return
    if min_shared == 1:
        assert len(tree.tokens) == len(beginnings)
    tokens = torch.cat(sequences)
    row = tokens[tree.tokens]
    assert torch.equal(row[tree.places], tokens)
    places_seen = seen(tree)
    for path in tree.places.split(list(map(len, sequences))):
        for number, place in enumerate(path.tolist()):
            assert sorted(places_seen[place]) == sorted(path[: number + 1].tolist())
    # What the kernel of CUDA is given: each piece beside its sequence up to its end.
    pieces = tree.boundaries.tolist()
    ends = tree.path_boundaries.tolist()
    assert pieces[-1] == len(row) and ends[-1] == len(tree.paths)
    for number, last in enumerate(pieces[1:]):
        path = tree.paths[ends[number] : ends[number + 1]].tolist()
        assert sorted(places_seen[last - 1]) == sorted(path) and path[-1] == last - 1
    assert tree.longest == max(b - a for a, b in pairwise(pieces))
    assert tree.longest_path == max(b - a for a, b in pairwise(ends))


HEADS, KV_HEADS, SIZE = 4, 2, 8


@pytest.fixture
def tree():
    generator = torch.Generator().manual_seed(0)
    policy, tools, user = (
        torch.randint(100, (n,), generator=generator) for n in (20, 18, 30)
    )
    own = [torch.randint(100, (n,), generator=generator) for n in (7, 11, 3, 25)]
    sequences = [
        torch.cat([policy, tools, own[0]]),
        torch.cat([policy, own[1]]),
        torch.cat([policy, tools, own[2]]),
        torch.cat([policy, tools]),
        user,
        torch.cat([user, own[3]]),
    ]
    return prefix_tree(torch.cat(sequences), list(map(len, sequences)))


@pytest.fixture
def states(tree):
    generator = torch.Generator().manual_seed(0)
    shape = (HEADS, KV_HEADS, KV_HEADS)
    return [
        torch.randn(
            (1, heads, len(tree.tokens), SIZE), generator=generator, dtype=torch.float64
        ).requires_grad_()
        for heads in shape
    ]


def dense(states, tree, scale):
    query, key, value = (x[0] for x in states)
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, 0) for x in (key, value))
    mask = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool)
    for place, places in enumerate(seen(tree)):
        mask[place, places] = False
    scores = (scale * query @ key.transpose(1, 2)).masked_fill(mask, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(0, 1)[None]


def test_attention_over_prefixes_and_its_gradient(states, tree):
    assert len(tree.tokens) == 20 + 18 + 30 + 7 + 11 + 3 + 25
    output = prefix_attention.prefix_attention(*states, tree, 0.3)
    expected = dense(states, tree, 0.3)
    torch.testing.assert_close(output, expected)
    weight = torch.randn_like(output)
    gradients = torch.autograd.grad((output * weight).sum(), states)
    right = torch.autograd.grad((expected * weight).sum(), states)
    for ours, theirs in zip(gradients, right, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_kernel_of_cuda_is_asked_for_the_same(states, tree, monkeypatch):
    """A stand-in that reads its arguments as torch's documentation has them."""

    def varlen_attn(query, key, value, cu_q, cu_k, max_q, max_k, **kwargs):
        assert kwargs.pop("window_size") == (-1, 0) and kwargs.pop("enable_gqa")
        assert set(kwargs) == {"scale"}
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert max_q == max(cu_q.diff()) and max_k == max(cu_k.diff())
        outputs = []
        for number in range(len(cu_q) - 1):
            q = query[cu_q[number] : cu_q[number + 1]]
            k, v = (
                x[cu_k[number] : cu_k[number + 1]].repeat_interleave(2, 1)
                for x in (key, value)
            )
            scores = kwargs["scale"] * torch.einsum("qhd,khd->hqk", q, k)
            # Causal, the last query beside the last key.
            hidden = torch.ones(scores.shape[1:]).triu(1 + len(k) - len(q)) > 0
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
        return torch.cat(outputs)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    output = prefix_attention._beside_whole_sequences(*states, tree, 0.3)
    torch.testing.assert_close(output, dense(states, tree, 0.3))


@pytest.fixture
def sequences():
    """Two groups that begin alike, and one sequence of its own."""
    generator = torch.Generator().manual_seed(1)

    def text(length):
        return torch.randint(3, 100, (length,), generator=generator)

    policy, users = text(40), (text(20), text(17))
    groups = [torch.cat([policy, u, text(9 + i)]) for u in users for i in range(3)]
    alone = text(30)
    alone[0] = 99  # The last in the order of tokens.
    return [*groups, alone]


def batch_of(sequences):
    return packed([sequences[::3], sequences[1::3], sequences[2::3]])


FAMILIES = ["qwen3", "llama", "qwen3_moe", "opt", "cohere"]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradients_are_those_of_each_alone(family, sequences):
    policy, unshared = CausalLMPolicy(tiny_lm(family)), CausalLMPolicy(tiny_lm(family))
    assert policy.share_prefixes
    unshared.share_prefixes = False
    widths = []
    policy.lm.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape),
        with_kwargs=True,
    )
    batch = batch_of(sequences)
    weight = torch.linspace(-1.0, 1.0, int(batch[columns.LOSS_MASK].sum()))
    gradients = []
    for each in (policy, unshared):
        logp = each(batch).logp[batch[columns.LOSS_MASK]]
        (logp * weight).sum().backward()
        gradients.append((logp, {n: p.grad for n, p in each.named_parameters()}))
    (logp, ours), (expected, theirs) = gradients
    assert widths == [(1, 40 + 20 + 17 + 2 * (9 + 10 + 11) + 30)]
    torch.testing.assert_close(logp, expected, atol=1e-4, rtol=0)
    for name, gradient in theirs.items():
        size = gradient.abs().max().clamp(min=1.0)
        assert (ours[name] - gradient).abs().max() / size < 1e-5, name
    alone = logp_of_model(policy.lm, sequences[3])
    torch.testing.assert_close(
        policy(batch).logp[0, 1 + len(sequences[0]) :][: len(alone)],
        alone,
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_layers_may_be_computed_anew(checkpointing, sequences, tmp_path):
    tiny_lm("qwen3").save_pretrained(tmp_path)
    gradients = []
    for share_prefixes in (True, False):
        lm = load_causal_lm(tmp_path, gradient_checkpointing=checkpointing)
        policy = CausalLMPolicy(lm)
        policy.share_prefixes = share_prefixes
        policy(batch_of(sequences)).logp.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in lm.parameters()]))
    shared, apart = gradients
    assert (shared - apart).abs().max() / apart.abs().max() < 1e-5


def test_sharing_in_the_compute_dtype(sequences):
    policy = CausalLMPolicy(tiny_lm("qwen3"), compute_dtype=torch.bfloat16)
    batch = batch_of(sequences)
    shared = policy.score(batch, None, max_tokens=1000)
    policy.share_prefixes = False
    assert (shared - policy.score(batch, None, max_tokens=1000)).abs().mean() < 0.1


@pytest.mark.parametrize("max_tokens", [1, 90, 150, 1000])
def test_parts_hold_what_begins_alike_and_keep_to_the_limit(sequences, max_tokens):
    policy = CausalLMPolicy(tiny_lm("llama"))
    batch = packed([[s] for s in (sequences[i] for i in (3, 0, 6, 4, 1, 5, 2))])
    widths, parts = [], list(policy.micro_batches(batch, max_tokens))
    policy.lm.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]),
        with_kwargs=True,
    )
    for rows, part in parts:
        assert torch.equal(part[columns.TOKENS], batch[columns.TOKENS][rows])
        policy(part)
    assert sorted(torch.cat([rows for rows, _ in parts]).tolist()) == list(range(7))
    if max_tokens == 150:
        # By hand: policy, both users and all ends, 137; then the one by itself.
        assert sorted(widths) == [30, 137]
    assert all(w <= max_tokens or len(r) == 1 for w, (r, _) in zip(widths, parts))
    expected = policy(batch).logp
    logp = policy.score(batch, None, max_tokens)
    torch.testing.assert_close(logp, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "qwen3_next", "gpt_oss"])
def test_where_attention_is_another_nothing_is_shared(family):
    assert not CausalLMPolicy(tiny_lm(family)).share_prefixes


def test_a_model_that_shares_wrongly_is_found_out(monkeypatch):
    def without_prefixes(query, key, value, tree, scale):
        pieces = [block for block in tree.blocks if block.is_causal]
        return prefix_attention.prefix_attention(
            query, key, value, tree._replace(blocks=pieces), scale
        )

    monkeypatch.setattr(attention, "prefix_attention", without_prefixes)
    policy = CausalLMPolicy(tiny_lm("llama"))
    assert not policy.share_prefixes
    assert attention.is_packed(policy.causal_lm)
