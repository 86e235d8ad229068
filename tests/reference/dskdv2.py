"The published alignment of DSKDv2 (arXiv 2504.11426), for comparison with the 1-1 chunks of the byte alignment."


def eta_walk(student: list[str], teacher: list[str],
             stops: tuple = ("</s>", "<|endoftext|>", "<stop>")) -> list[tuple[int, int]]:
    """Aligned (student, teacher) positions of two lists of token strings: the word markers are stripped, and both lists
    are read with two running histories. Equal histories and equal next tokens (or a stop on both sides) are a pair.
    Otherwise the side with the shorter history moves on; at a tie both do."""
    student, teacher = ([token if token in stops else token.lstrip("▁Ġ") for token in side] for side in (student, teacher))
    i = j = 0
    student_history, teacher_history, pairs = "", "", []
    while i < len(student) and j < len(teacher):
        both_stop = student[i] in stops and teacher[j] in stops
        if student_history == teacher_history and (student[i] == teacher[j] or both_stop):
            pairs.append((i, j))
            student_moves = teacher_moves = True
        else:
            student_moves = len(student_history) <= len(teacher_history)
            teacher_moves = len(teacher_history) <= len(student_history)
        if student_moves:
            student_history += student[i]
            i += 1
        if teacher_moves:
            teacher_history += teacher[j]
            j += 1
    return pairs
