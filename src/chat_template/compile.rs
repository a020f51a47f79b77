//! Templates as instructions that pay for what they do: see `limits.rs`.

use super::constants;
use super::limits::{ARGUMENTS, AT_ONCE, ATTRIBUTE, COMPARED, JOINED, KEPT, LAZY, MADE, SORTED};
use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

/// Words and signs in one tag, whose expression is walked through on the stack. Those of real templates have 62.
const MAX_TOKENS: usize = 1000;

/// All the `elif` of a template: each is compiled inside of the one before. Those of real templates are 20 at most.
const MAX_ELIFS: usize = 300;

/// Filters that look at no value inside of another one.
const SHALLOW: &[&str] = &[
    "count", "d", "default", "first", "last", "length", "lower", "safe", "title", "trim", "upper",
];
/// Tests that do not either. `odd` and its like are about numbers.
const SHALLOW_TESTS: &[&str] = &[
    "boolean",
    "callable",
    "defined",
    "even",
    "false",
    "float",
    "integer",
    "iterable",
    "mapping",
    "none",
    "number",
    "odd",
    "sequence",
    "string",
    "true",
    "undefined",
];
/// Filters that compare what they are given several times.
const SORTING: &[&str] = &["dictsort", "groupby", "max", "min", "sort", "unique"];

/// A template as instructions that pay for what they do.
pub(super) fn compile<'source>(
    name: &'source str,
    source: &'source str,
    syntax: SyntaxConfig,
) -> Result<Instructions<'source>, Error> {
    check_tags(source, syntax.clone())?;
    let template = parse(source, name, syntax)?;
    constants::check(&template)?;
    let mut generator = CodeGenerator::new(name, source);
    generator.compile_stmt(&template);
    let (compiled, _) = generator.finish();
    // Where each instruction goes, with what is put in before it.
    let mut places = Vec::new();
    let mut place = 0;
    let mut index = 0;
    while let Some(instruction) = compiled.get(index) {
        places.push(place);
        let n_before = payments_before(instruction)?.len();
        place += (n_before + 1 + payments_behind(instruction, 0).len()) as u32;
        index += 1;
    }
    // Behind the last one there is a place too.
    places.push(place);
    let mut paying = Instructions::new(name, source);
    for index in 0..index {
        let Some(instruction) = compiled.get(index) else {
            break;
        };
        let mut add = |instruction| match compiled.get_line(index) {
            Some(line) => {
                paying.add_with_line(instruction, u16::try_from(line).unwrap_or(u16::MAX))
            }
            None => paying.add(instruction),
        };
        for before in payments_before(instruction)? {
            add(before);
        }
        let mut moved = instruction.clone();
        if let Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) = &mut moved
            && let Some(&place) = places.get(*target as usize)
        {
            *target = place;
        }
        let at = add(moved) + 1;
        for behind in payments_behind(instruction, at) {
            add(behind);
        }
    }
    Ok(paying)
}

/// Refuses tags that are too long, and too many of those that are compiled inside of each other.
fn check_tags(source: &str, syntax: SyntaxConfig) -> Result<(), Error> {
    let mut n_tokens = 0;
    let mut n_elifs = 0;
    for token in tokenize(source, false, syntax) {
        // What is no token is an error of the parser, which knows its line.
        let Ok((token, span)) = token else {
            return Ok(());
        };
        match token {
            Token::BlockStart | Token::VariableStart => n_tokens = 0,
            _ => n_tokens += 1,
        }
        n_elifs += usize::from(n_tokens == 1 && matches!(token, Token::Ident("elif")));
        let message = if n_tokens > MAX_TOKENS {
            format!("more than {MAX_TOKENS} words and signs in a tag")
        } else if n_elifs > MAX_ELIFS {
            format!("more than {MAX_ELIFS} times `elif`")
        } else {
            continue;
        };
        let message = format!("line {}: {message}", span.start_line);
        return Err(Error::new(ErrorKind::SyntaxError, message));
    }
    Ok(())
}

/// A name's filter or test is looked up each time, and not kept for one of the engine's numbers.
const NOT_KEPT: u8 = u8::MAX;

fn filter<'source>(name: &'static str) -> Instruction<'source> {
    Instruction::ApplyFilter(name, Some(1), NOT_KEPT)
}

/// Tests the value on top, which stays there.
fn tested<'source>(name: &'static str) -> [Instruction<'source>; 3] {
    [
        Instruction::DupTop,
        Instruction::PerformTest(name, Some(1), NOT_KEPT),
        Instruction::DiscardTop,
    ]
}

/// Tests the value below the top.
fn tested_below<'source>(name: &'static str) -> Vec<Instruction<'source>> {
    let mut instructions = vec![Instruction::Swap];
    instructions.extend(tested(name));
    instructions.push(Instruction::Swap);
    instructions
}

/// Tests both operands of an operation.
fn both_tested<'source>(name: &'static str) -> Vec<Instruction<'source>> {
    let mut instructions = tested(name).to_vec();
    instructions.extend(tested_below(name));
    instructions
}

/// What an instruction's operands pay with.
fn payments_before<'source>(
    instruction: &Instruction<'source>,
) -> Result<Vec<Instruction<'source>>, Error> {
    let of_arguments = |n_arguments: Option<u16>, name| match n_arguments {
        Some(0) => Ok(Vec::new()),
        Some(n) => Ok(vec![
            Instruction::BuildList(Some(n.into())),
            filter(name),
            Instruction::UnpackList(n.into()),
        ]),
        None => {
            let message = "arguments from a list (`*`) are not supported";
            Err(Error::new(ErrorKind::InvalidOperation, message))
        }
    };
    match instruction {
        // The engine divides by the number of arguments, of which the loop itself is none.
        Instruction::CallMethod("cycle", Some(..=1)) => {
            let message = "`cycle` without arguments";
            Err(Error::new(ErrorKind::InvalidOperation, message))
        }
        Instruction::CallMethod("changed", n_arguments) => of_arguments(*n_arguments, KEPT),
        Instruction::Eq
        | Instruction::Ne
        | Instruction::Gt
        | Instruction::Gte
        | Instruction::Lt
        | Instruction::Lte
        | Instruction::In
        | Instruction::CompareAndPreserve(_) => Ok(both_tested(COMPARED)),
        Instruction::StringConcat => Ok(both_tested(JOINED)),
        Instruction::GetItem => Ok(tested(COMPARED).to_vec()),
        Instruction::SetAttr(_) => Ok(tested_below(ATTRIBUTE)),
        Instruction::ApplyFilter(name, ..) if SHALLOW.contains(name) => Ok(Vec::new()),
        Instruction::ApplyFilter(name, n_arguments, _) if SORTING.contains(name) => {
            of_arguments(*n_arguments, SORTED)
        }
        Instruction::PerformTest(name, ..) if SHALLOW_TESTS.contains(name) => Ok(Vec::new()),
        Instruction::ApplyFilter(_, n_arguments, _)
        | Instruction::PerformTest(_, n_arguments, _)
        | Instruction::CallFunction(_, n_arguments)
        | Instruction::CallMethod(_, n_arguments)
        | Instruction::CallObject(n_arguments) => of_arguments(*n_arguments, ARGUMENTS),
        _ => Ok(Vec::new()),
    }
}

/// What pays for a value that an instruction has made. `at` is the place behind the instruction.
fn payments_behind<'source>(instruction: &Instruction, at: u32) -> Vec<Instruction<'source>> {
    match instruction {
        Instruction::BuildMap(_) | Instruction::BuildList(_) | Instruction::BuildTuple(_) => {
            tested(MADE).to_vec()
        }
        Instruction::Add
        | Instruction::Mul
        | Instruction::Slice
        | Instruction::ApplyFilter(..)
        | Instruction::CallFunction(..)
        | Instruction::CallMethod(..)
        | Instruction::CallObject(_) => {
            let mut instructions = vec![
                Instruction::DupTop,
                Instruction::PerformTest(LAZY, Some(1), NOT_KEPT),
                Instruction::JumpIfFalse(at + 4),
                filter(AT_ONCE),
            ];
            instructions.extend(tested(MADE));
            instructions
        }
        _ => Vec::new(),
    }
}
