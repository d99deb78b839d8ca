//! Classic BPF (Documentation/networking/filter.rst of the kernel), as far as seccomp has it: which results a
//! program can have. Jumps only go forward, so one pass is enough, in which each instruction is seen once with all
//! that is known in front of it. Where a jump depends on what is not known, both ways are gone.

use libc::sock_filter;

/// A value, if it is known.
pub(super) type Word = Option<u32>;

/// The size of what a program reads (struct seccomp_data).
const LENGTH: u32 = 64;

/// What is known in front of an instruction.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    a: Word,
    x: Word,
    memory: [Word; libc::BPF_MEMWORDS as usize],
}

impl State {
    /// What is known on both of two ways.
    fn joined(self, other: Option<Self>) -> Self {
        let Some(other) = other else { return self };
        let same = |one: Word, two: Word| one.filter(|_| one == two);
        Self {
            a: same(self.a, other.a),
            x: same(self.x, other.x),
            memory: std::array::from_fn(|at| same(self.memory[at], other.memory[at])),
        }
    }
}

/// What comes after an instruction.
enum Next {
    /// The one behind it, and so many further.
    On(u32),
    /// One of these two.
    Either(u8, u8),
    /// The end, with a result.
    End(Word),
}

/// All results that a program can have; `data` gives the words that it reads, by their offsets. None for what is no
/// program that seccomp takes.
pub(super) fn results(program: &[sock_filter], data: impl Fn(u32) -> Word) -> Option<Vec<Word>> {
    let mut states: Vec<Option<State>> = vec![None; program.len()];
    *states.first_mut()? =
        Some(State { a: Some(0), x: Some(0), memory: [Some(0); libc::BPF_MEMWORDS as usize] });
    let mut results = Vec::new();
    for at in 0..program.len() {
        let Some(mut state) = states[at] else { continue };
        let ways = match step(&program[at], &mut state, &data)? {
            Next::On(distance) => vec![distance],
            Next::Either(one, other) => vec![one.into(), other.into()],
            Next::End(result) => {
                results.push(result);
                continue;
            }
        };
        for distance in ways {
            let next = states.get_mut(at + 1 + distance as usize)?;
            *next = Some(state.joined(*next));
        }
    }
    Some(results)
}

fn step(instruction: &sock_filter, state: &mut State, data: impl Fn(u32) -> Word) -> Option<Next> {
    const CLASS: u32 = 0x07;
    let (code, k) = (u32::from(instruction.code), instruction.k);
    let slot = k as usize;
    match code & CLASS {
        libc::BPF_LD => state.a = load(code, k, state, data)?,
        libc::BPF_LDX => state.x = load(code, k, state, data)?,
        libc::BPF_ST => *state.memory.get_mut(slot)? = state.a,
        libc::BPF_STX => *state.memory.get_mut(slot)? = state.x,
        libc::BPF_ALU => match calculated(code, operand(code, k, state), state.a)? {
            Calculated::Value(value) => state.a = value,
            Calculated::Aborted => return Some(Next::End(None)),
        },
        libc::BPF_JMP => return jump(instruction, operand(code, k, state), state.a),
        libc::BPF_RET => return Some(Next::End(if code & 0x18 == libc::BPF_A { state.a } else { Some(k) })),
        libc::BPF_MISC if code & 0xf8 == libc::BPF_TAX => state.x = state.a,
        libc::BPF_MISC => state.a = state.x,
        _ => return None,
    }
    Some(Next::On(0))
}

fn load(code: u32, k: u32, state: &State, data: impl Fn(u32) -> Word) -> Option<Word> {
    const MODE: u32 = 0xe0;
    match code & MODE {
        libc::BPF_ABS => Some(data(k)),
        libc::BPF_IMM => Some(Some(k)),
        libc::BPF_LEN => Some(Some(LENGTH)),
        libc::BPF_MEM => state.memory.get(k as usize).copied(),
        _ => None,
    }
}

/// The second operand: in the instruction, or X.
fn operand(code: u32, k: u32, state: &State) -> Word {
    if code & libc::BPF_X == 0 { Some(k) } else { state.x }
}

enum Calculated {
    Value(Word),
    /// A division by what is or may be zero ends the program, with the worst result.
    Aborted,
}

fn calculated(code: u32, operand: Word, a: Word) -> Option<Calculated> {
    const OPERATION: u32 = 0xf0;
    let operation: fn(u32, u32) -> u32 = match code & OPERATION {
        libc::BPF_ADD => u32::wrapping_add,
        libc::BPF_SUB => u32::wrapping_sub,
        libc::BPF_MUL => u32::wrapping_mul,
        libc::BPF_DIV if operand.is_none_or(|by| by == 0) => return Some(Calculated::Aborted),
        libc::BPF_DIV => |a, by| a / by,
        libc::BPF_AND => |a, b| a & b,
        libc::BPF_OR => |a, b| a | b,
        libc::BPF_XOR => |a, b| a ^ b,
        libc::BPF_LSH => u32::wrapping_shl,
        libc::BPF_RSH => u32::wrapping_shr,
        libc::BPF_NEG => |a, _| a.wrapping_neg(),
        _ => return None,
    };
    Some(Calculated::Value(a.zip(operand).map(|(a, b)| operation(a, b))))
}

fn jump(instruction: &sock_filter, operand: Word, a: Word) -> Option<Next> {
    const OPERATION: u32 = 0xf0;
    let holds: fn(u32, u32) -> bool = match u32::from(instruction.code) & OPERATION {
        libc::BPF_JA => return Some(Next::On(instruction.k)),
        libc::BPF_JEQ => |a, b| a == b,
        libc::BPF_JGT => |a, b| a > b,
        libc::BPF_JGE => |a, b| a >= b,
        libc::BPF_JSET => |a, b| a & b != 0,
        _ => return None,
    };
    let (yes, no) = (instruction.jt, instruction.jf);
    Some(match a.zip(operand) {
        Some((a, b)) => Next::On(u32::from(if holds(a, b) { yes } else { no })),
        None => Next::Either(yes, no),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
        sock_filter { code: code as u16, jt, jf, k }
    }

    const RETURN_A: sock_filter = instruction(libc::BPF_RET | libc::BPF_A, 0, 0, 0);

    fn one_result(program: &[sock_filter]) -> Word {
        let results = results(program, Some).expect("a program");
        assert_eq!(results.len(), 1, "{results:?}");
        results[0]
    }

    #[test]
    fn arithmetic_is_that_of_the_kernel() {
        let cases = [
            (libc::BPF_ADD, 0xffff_fffc, 4),
            (libc::BPF_SUB, 9, u32::MAX),
            (libc::BPF_MUL, 3, 24),
            (libc::BPF_DIV, 3, 2),
            (libc::BPF_AND, 12, 8),
            (libc::BPF_OR, 3, 11),
            (libc::BPF_XOR, 12, 4),
            (libc::BPF_LSH, 2, 32),
            (libc::BPF_RSH, 2, 2),
        ];
        for (operation, k, expected) in cases {
            let load = instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 8);
            let by_constant = [load, instruction(libc::BPF_ALU | operation | libc::BPF_K, 0, 0, k), RETURN_A];
            assert_eq!(one_result(&by_constant), Some(expected), "operation {operation:#x}");
            let set_x = instruction(libc::BPF_LDX | libc::BPF_IMM, 0, 0, k);
            let by_x = [load, set_x, instruction(libc::BPF_ALU | operation | libc::BPF_X, 0, 0, 0), RETURN_A];
            assert_eq!(one_result(&by_x), Some(expected), "operation {operation:#x} with X");
        }
    }

    #[test]
    fn memory_and_registers_keep_their_values() {
        let program = [
            instruction(libc::BPF_LD | libc::BPF_IMM, 0, 0, 7),
            instruction(libc::BPF_ST, 0, 0, 3),
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0, 0, 0),
            instruction(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0),
            instruction(libc::BPF_LD | libc::BPF_MEM, 0, 0, 3),
            instruction(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0, 0, 0),
            RETURN_A,
        ];
        assert_eq!(one_result(&program), Some(71));
    }

    #[test]
    fn a_division_by_zero_and_what_is_no_program_are_told() {
        let divide = instruction(libc::BPF_ALU | libc::BPF_DIV | libc::BPF_X, 0, 0, 0);
        assert_eq!(one_result(&[divide, RETURN_A]), None);
        assert!(results(&[], |_| None).is_none());
        let beyond = instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, 9);
        assert!(results(&[beyond, RETURN_A], |_| None).is_none());
        let without_end = instruction(libc::BPF_LD | libc::BPF_IMM, 0, 0, 7);
        assert!(results(&[without_end], |_| None).is_none());
    }

    #[test]
    fn where_it_is_not_known_both_ways_are_gone() {
        let program = [
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 16),
            instruction(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 0, 1, 5),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 1),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 2),
        ];
        assert_eq!(results(&program, |_| None), Some(vec![Some(1), Some(2)]));
        assert_eq!(results(&program, |_| Some(6)), Some(vec![Some(1)]));
    }
}
