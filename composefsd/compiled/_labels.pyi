from composefsd.compiled.labels import Column

def descend(
    depth: int,
    stack: Column,
    first: Column,
    order: Column,
    names: bytes | bytearray,
    name_end: Column,
    child: Column,
    kind: Column,
    listing: Column,
    moves: Column,
    rules: Column,
    labels: Column,
    letter_at: bytes,
    given: Column,
    /,
) -> tuple[int, int, int, int]: ...
