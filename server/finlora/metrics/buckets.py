"""Histogram edges. Ours contain vLLM's, so that its view of a histogram is exact."""

VLLM_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
VLLM_INTER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
VLLM_REQUEST = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)
VLLM_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
REQUEST_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)


def union(*edges: tuple[float, ...]) -> tuple[float, ...]:
    """All edges once, ascending."""
    return tuple(sorted({float(edge) for group in edges for edge in group}))


WAIT = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
STEP = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
COUNT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
FIRST_TOKEN = union(WAIT, VLLM_FIRST_TOKEN)
INTER_TOKEN = union(STEP, VLLM_INTER_TOKEN)
REQUEST = union(WAIT, VLLM_REQUEST)
STEP_TOKENS = union(COUNT, VLLM_STEP_TOKENS)
