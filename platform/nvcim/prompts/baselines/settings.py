"""Settings of the prompt-tuning baselines, one flat object; a method reads what carries its name."""

from pydantic import Field

from nvcim.config import Settings


class BaselineSettings(Settings):
    """How the baselines are fitted to one user's samples; all train with Adam, the rate falling linearly to a tenth.

    Rates of vectors that live among the token embeddings (vanilla, DEPT) are relative to the RMS of the LM's token
    embeddings, as in `TuningSettings`; the others are absolute.

    The rates had the best mean score among three or four tried for each method with the embedded LM, on four generated
    users of seed 100 (one per task of the base LM; 24 samples and 24 questions each): a coarse choice. Vanilla's is the
    lowest tried and P-tuning v2's the highest.
    """

    steps: int = Field(60, ge=1, description="each over all samples of the user")
    rows_per_batch: int = Field(
        64, ge=1, description="samples per forward pass; a step adds up gradients over as many as it takes"
    )
    tokens: int = Field(
        8,
        ge=1,
        description="virtual tokens of vanilla and prefix tuning, and what DEPT's size is measured by",
    )
    vanilla_learning_rate: float = Field(0.05, gt=0)
    prefix_encoder_width: int = Field(
        512, ge=1, description="of the MLP that prefix tuning trains through (P-tuning v2's code: 512)"
    )
    prefix_learning_rate: float = Field(0.003, gt=0)
    p_tuning_v2_tokens: int = Field(4, ge=1, description="P-tuning v2's code: 4")
    p_tuning_v2_learning_rate: float = Field(0.3, gt=0)
    dept_tokens: int = Field(
        5, ge=1, description="short prompt; the rank follows from what is left of vanilla's parameters"
    )
    dept_length: int = Field(256, ge=1, description="positions with an update of their embedding (DePT: 256)")
    dept_alpha: float = Field(
        8.0, gt=0, description="scale of the update, over the root of its rank (DePT: 8)"
    )
    dept_learning_rate: float = Field(0.4, gt=0, description="of the short prompt")
    dept_update_learning_rate: float = Field(0.02, gt=0, description="of the low-rank update")
    lora_rank: int = Field(8, ge=1)
    lora_alpha: int = Field(16, ge=1)
    lora_learning_rate: float = Field(0.003, gt=0)
