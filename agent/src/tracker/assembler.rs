//! Puts eBPF programs together: one method an instruction, labels for jumps.
//!
//! Offsets of jumps are filled in when the program is finished, so that it reads from top to bottom.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::btf::{Field, Width};
use crate::sys::bpf::Instruction;

/// A register. `R0` holds results, `R1` to `R5` arguments and are lost by a call, `R6` to `R9` stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R6 = 6,
    R7,
    R8,
    R9,
    /// The end of the stack; never changed.
    Frame,
}

/// What is done with a register and an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Operation {
    Add = 0x00,
    Subtract = 0x10,
    And = 0x50,
    ShiftRight = 0x70,
    Set = 0xb0,
}

/// When a jump is taken. Numbers are unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Condition {
    Always = 0x00,
    Equal = 0x10,
    Greater = 0x20,
    AtLeast = 0x30,
    Differs = 0x50,
    Less = 0xa0,
}

/// The second operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    Register(Register),
    /// Extended with its sign to 64 bits.
    Number(i32),
}

/// The kernel's functions that are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Helper {
    Lookup = 1,
    Update = 2,
    Delete = 3,
}

/// A place in the program that is jumped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program that is being put together.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<Instruction>,
    /// Where each label is, once it is known.
    labels: Vec<Option<usize>>,
    /// The jumps, to be filled in.
    jumps: Vec<(usize, Label)>,
}

const WIDE_LOAD: u8 = 0x18;
const MAP_DESCRIPTOR: u8 = 1;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const STORE_NUMBER: u8 = 0x62;
const ATOMIC_ADD: u8 = 0xc3;
const BYTE: u8 = 0x10;
const EIGHT: u8 = 0x18;
const ARITHMETIC_64: u8 = 0x07;
const ARITHMETIC_32: u8 = 0x04;
const JUMP: u8 = 0x05;
/// The second operand is a register.
const FROM_REGISTER: u8 = 0x08;

impl Assembler {
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label is here.
    pub(super) fn bind(&mut self, label: Label) -> &mut Self {
        if let Some(place) = self.labels.get_mut(label.0) {
            *place = Some(self.code.len());
        }
        self
    }

    /// `to = *(from + field)`, without sign.
    pub(super) fn load(&mut self, to: Register, from: Register, field: Field) -> &mut Self {
        self.put(LOAD | width(field.width), to as u8, from as u8, field.offset, 0)
    }

    /// `*(at + field) = from`
    pub(super) fn store(&mut self, at: Register, field: Field, from: Register) -> &mut Self {
        self.put(STORE | width(field.width), at as u8, from as u8, field.offset, 0)
    }

    /// `*at = number`, one byte.
    pub(super) fn store_byte(&mut self, at: Register, number: u8) -> &mut Self {
        self.put(STORE_NUMBER | BYTE, at as u8, 0, 0, number.into())
    }

    /// `*(at + offset) += from`, eight bytes, in one step for all CPUs.
    pub(super) fn atomic_add(&mut self, at: Register, offset: i16, from: Register) -> &mut Self {
        self.put(ATOMIC_ADD | EIGHT, at as u8, from as u8, offset, 0)
    }

    /// `to = to operation operand`
    pub(super) fn compute(&mut self, to: Register, operation: Operation, operand: impl Into<Operand>) -> &mut Self {
        self.arithmetic(ARITHMETIC_64 | operation as u8, to, operand.into())
    }

    /// Keeps the lower 32 bits.
    pub(super) fn truncate(&mut self, register: Register) -> &mut Self {
        self.arithmetic(ARITHMETIC_32 | Operation::Set as u8, register, register.into())
    }

    /// `to = number`, all 64 bits.
    pub(super) fn set_wide(&mut self, to: Register, number: u64) -> &mut Self {
        self.wide(to, 0, number)
    }

    /// `to = ` the map.
    pub(super) fn set_map(&mut self, to: Register, map: BorrowedFd<'_>) -> &mut Self {
        self.wide(to, MAP_DESCRIPTOR, map.as_raw_fd().unsigned_abs().into())
    }

    /// `to = ` the address of a place on the stack.
    pub(super) fn address_of(&mut self, to: Register, place: Field) -> &mut Self {
        self.compute(to, Operation::Set, Register::Frame).compute(to, Operation::Add, i32::from(place.offset))
    }

    pub(super) fn jump(&mut self, to: Label) -> &mut Self {
        self.jump_if(Register::R0, Condition::Always, 0, to)
    }

    pub(super) fn jump_if(
        &mut self,
        left: Register,
        condition: Condition,
        right: impl Into<Operand>,
        to: Label,
    ) -> &mut Self {
        self.jumps.push((self.code.len(), to));
        self.arithmetic(JUMP | condition as u8, left, right.into())
    }

    pub(super) fn call(&mut self, helper: Helper) -> &mut Self {
        self.put(CALL, 0, 0, 0, helper as i32)
    }

    pub(super) fn exit(&mut self) -> &mut Self {
        self.put(EXIT, 0, 0, 0, 0)
    }

    /// The program. A jump to a label that was never bound, or too far, is left as an endless loop, which the verifier refuses.
    pub(super) fn finish(self) -> Vec<Instruction> {
        let Self { mut code, labels, jumps } = self;
        for (from, label) in jumps {
            let to = labels.get(label.0).copied().flatten().unwrap_or(from);
            let distance = i32::try_from(to).unwrap_or(0) - i32::try_from(from + 1).unwrap_or(0);
            let distance = i16::try_from(distance).ok();
            if let Some(Instruction([_, _, low, high, ..])) = code.get_mut(from) {
                [*low, *high] = distance.unwrap_or(-1).to_le_bytes();
            }
        }
        code
    }

    fn arithmetic(&mut self, code: u8, to: Register, operand: Operand) -> &mut Self {
        match operand {
            Operand::Register(from) => self.put(code | FROM_REGISTER, to as u8, from as u8, 0, 0),
            Operand::Number(number) => self.put(code, to as u8, 0, 0, number),
        }
    }

    fn wide(&mut self, to: Register, source: u8, number: u64) -> &mut Self {
        let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
        let (low, high) = (i32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([e, f, g, h]));
        self.put(WIDE_LOAD, to as u8, source, 0, low).put(0, 0, 0, 0, high)
    }

    fn put(&mut self, code: u8, to: u8, from: u8, offset: i16, number: i32) -> &mut Self {
        let ([o0, o1], [n0, n1, n2, n3]) = (offset.to_le_bytes(), number.to_le_bytes());
        self.code.push(Instruction([code, to | from << 4, o0, o1, n0, n1, n2, n3]));
        self
    }
}

fn width(width: Width) -> u8 {
    match width {
        Width::Four => 0,
        Width::Eight => EIGHT,
    }
}

impl From<Register> for Operand {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

impl From<i32> for Operand {
    fn from(number: i32) -> Self {
        Self::Number(number)
    }
}
