"""Labels as they stand in the middle of a sentence."""


def within(label: str) -> str:
    """`Key pair` → `key pair`; an abbreviation stays what it is: `Elastic IP` → `elastic IP`, `VPCs` → `VPCs`."""
    return " ".join(word if any(letter.isupper() for letter in word[1:]) else word.lower() for word in label.split(" "))
