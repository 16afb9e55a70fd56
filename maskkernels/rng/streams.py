"""The streams of the random contract: one number for each purpose, so that no two draws coincide.

A stream is the low byte of counter word c3, in [0, 256). The numbers are part of the contract:
changing one changes masks. 13 to 255 are free.
"""

DECISION = 0  # what happens to a token; index = its position
REPLACEMENT = 1  # a random replacement id; index = position
UNIT = 2  # whether a unit is selected; index = number of the unit
DENOISER = 3  # which denoiser of a mixture corrupts the row; index = 0
NOISE = 4  # where the noise is cut into spans; index = step of the choice
GAP = 5  # where the tokens between the spans are cut; index = step
LENGTH = 6  # lengths of infilled spans; index = number of the draw
PLACE = 7  # where the masks of infilled spans go; index = step
SENTENCE = 8  # the order of the sentences; index = step
SPAN = 9  # the length of the span that begins at a unit; index = number of the unit
TIME = 10  # the diffusion time t of a row; index = 0
ROW = 11  # whether a row is masked at all; index = 0
TOKEN = 12  # which token a step of sampling puts in place of a mask; index = position, epoch = step
