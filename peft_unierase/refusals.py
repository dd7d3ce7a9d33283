"""The built-in ways of declining. Others can be given; a model that has words of its own for it does best with them."""

DEFAULT_REFUSALS = (
    "I don't know the answer to that.",
    "I'm not able to answer that question.",
    "I'm sorry, I don't know about that.",
    "I have no information about that.",
    "I'm afraid I can't help with that.",
    "That is something I don't know.",
    "I'm not familiar with that topic.",
    "Sorry, I can't answer that.",
    "I don't have any details about that.",
    "I'm unable to say anything about that.",
    "That's outside of what I know.",
    "I have no knowledge of that subject.",
)
