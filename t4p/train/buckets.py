"""How DeepSpeed is told to cut parameters and gradients into messages. Apart, so that a plan needs no DeepSpeed."""

# Numbers that travel in one collective of stages 1 to 3. DeepSpeed's default of 500 million allocates a buffer of 2 GB
# at stages 2 and 3 and puts a network like this one (38 million) into a single bucket, of which nothing can overlap.
BUCKET_SIZE = 2**23
# At stage 3 smaller parameters stay whole on every rank: biases, norms and temperatures, which are a thousandth of the
# memory and would be most of the messages.
STAGE_3_WHOLE_BELOW = 10_000
