//! Makes a template pay for all the work that it causes.
//!
//! The engine's fuel counts instructions and what they make, but not what lies inside of containers: comparing,
//! sorting, hashing and dropping go through all of it, on the stack. A list that holds another one twice, and that one
//! again another, is small and has no end, and so is a namespace that holds itself. So wherever a container is made
//! or goes into an operation, an instruction is put in that walks through it, at the expense of the fuel.

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Containers may not nest deeper.
const MAX_DEPTH: usize = 100;

/// Words and signs in one tag, whose expression is walked through on the stack. Those of real templates have 62.
const MAX_TOKENS: usize = 1000;

/// Each `elif` of a template is compiled inside of the one before. Those of real templates are 20 at most.
const MAX_ELIFS: usize = 300;

/// Values that are walked through for a unit of fuel.
const VALUES_PER_FUEL: usize = 4;

/// Bytes of text for a unit of fuel, as the engine counts them.
const BYTES_PER_FUEL: usize = 64;

/// How often what sorts looks at a value, at most: the logarithm of the most values that the fuel allows.
const SORT_COST: usize = 24;

/// The filters that are put in; no template can spell them.
const OPERAND: &str = "|operand";
const RESULT: &str = "|result";
const ATTRIBUTE: &str = "|attribute";
const ARGUMENTS: &str = "|arguments";
const SORTED: &str = "|sorted";

/// Filters that look at no value inside of another one.
const SHALLOW: &[&str] = &[
    "count", "d", "default", "first", "last", "length", "lower", "safe", "title", "trim", "upper",
];
/// Filters that compare what they are given several times.
const SORTING: &[&str] = &["dictsort", "groupby", "max", "min", "sort", "unique"];

/// Gives an environment what [`compile`] puts in, and the tests that compare, which other filters call by name.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter(OPERAND, |state: &State, value: Value| {
        pay(state, &value, false, 1)?;
        Ok::<_, Error>(value)
    });
    environment.add_filter(RESULT, |state: &State, value: Value| {
        let value = at_once(state, value)?;
        pay(state, &value, false, 1)?;
        Ok::<_, Error>(value)
    });
    environment.add_filter(ATTRIBUTE, |state: &State, value: Value| {
        pay(state, &value, true, 1)?;
        Ok::<_, Error>(value)
    });
    environment.add_filter(ARGUMENTS, |state: &State, values: &Value| {
        arguments(state, values, 1)
    });
    environment.add_filter(SORTED, |state: &State, values: &Value| {
        arguments(state, values, SORT_COST)
    });
    type Comparison = fn(&Value, &Value) -> bool;
    let comparisons: [(&[&str], Comparison); 6] = [
        (&["eq", "equalto", "=="], |a, b| a == b),
        (&["ne", "!="], |a, b| a != b),
        (&["lt", "lessthan", "<"], |a, b| a < b),
        (&["le", "<="], |a, b| a <= b),
        (&["gt", "greaterthan", ">"], |a, b| a > b),
        (&["ge", ">="], |a, b| a >= b),
    ];
    for (names, compare) in comparisons {
        for &name in names {
            environment.add_test(name, move |state: &State, a: &Value, b: &Value| {
                pay(state, a, false, 1)?;
                pay(state, b, false, 1)?;
                Ok::<_, Error>(compare(a, b))
            });
        }
    }
    environment.add_test("in", |state: &State, item: &Value, container: &Value| {
        pay(state, item, false, 1)?;
        pay(state, container, false, 1)?;
        minijinja::tests::is_in(state, item, container)
    });
}

/// A template as instructions that pay for what they do.
pub(super) fn compile<'source>(
    name: &'source str,
    source: &'source str,
    syntax: SyntaxConfig,
) -> Result<Instructions<'source>, Error> {
    check_tags(source, syntax.clone())?;
    let template = parse(source, name, syntax)?;
    let mut generator = CodeGenerator::new(name, source);
    generator.compile_stmt(&template);
    let (compiled, _) = generator.finish();
    let mut paying = Instructions::new(name, source);
    // Where each instruction, with what is put in before it, has gone.
    let mut places = Vec::new();
    let mut index = 0;
    while let Some(instruction) = compiled.get(index) {
        let mut add = |instruction| match compiled.get_line(index) {
            Some(line) => {
                paying.add_with_line(instruction, u16::try_from(line).unwrap_or(u16::MAX))
            }
            None => paying.add(instruction),
        };
        let mut place = None;
        let mut put_in = |instruction| {
            let at = add(instruction);
            place.get_or_insert(at);
        };
        for before in payments_before(instruction)? {
            put_in(before);
        }
        put_in(instruction.clone());
        if makes_container(instruction) {
            put_in(filter(RESULT));
        }
        places.extend(place);
        index += 1;
    }
    // Behind the last one there is a place too.
    let mut n_instructions = 0;
    while paying.get(n_instructions).is_some() {
        n_instructions += 1;
    }
    places.push(n_instructions);
    for index in 0..n_instructions {
        if let Some(
            Instruction::Iterate(target)
            | Instruction::Jump(target)
            | Instruction::JumpIfFalse(target)
            | Instruction::JumpIfFalseOrPop(target)
            | Instruction::JumpIfTrueOrPop(target)
            | Instruction::BuildMacro(_, target, _),
        ) = paying.get_mut(index)
            && let Some(&place) = places.get(*target as usize)
        {
            *target = place;
        }
    }
    Ok(paying)
}

/// Refuses tags that are too long, and too many that follow each other inside of one.
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

fn filter<'source>(name: &'static str) -> Instruction<'source> {
    const NOT_KEPT: u8 = u8::MAX;
    Instruction::ApplyFilter(name, Some(1), NOT_KEPT)
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
        Instruction::Eq
        | Instruction::Ne
        | Instruction::Gt
        | Instruction::Gte
        | Instruction::Lt
        | Instruction::Lte
        | Instruction::In
        | Instruction::CompareAndPreserve(_)
        | Instruction::StringConcat => Ok(vec![
            filter(OPERAND),
            Instruction::Swap,
            filter(OPERAND),
            Instruction::Swap,
        ]),
        Instruction::GetItem => Ok(vec![filter(OPERAND)]),
        Instruction::SetAttr(_) => Ok(vec![
            Instruction::Swap,
            filter(ATTRIBUTE),
            Instruction::Swap,
        ]),
        Instruction::ApplyFilter(name, ..) if SHALLOW.contains(name) => Ok(Vec::new()),
        Instruction::ApplyFilter(name, n_arguments, _) if SORTING.contains(name) => {
            of_arguments(*n_arguments, SORTED)
        }
        Instruction::ApplyFilter(_, n_arguments, _)
        | Instruction::CallFunction(_, n_arguments)
        | Instruction::CallMethod(_, n_arguments)
        | Instruction::CallObject(n_arguments) => of_arguments(*n_arguments, ARGUMENTS),
        _ => Ok(Vec::new()),
    }
}

fn makes_container(instruction: &Instruction) -> bool {
    matches!(
        instruction,
        Instruction::BuildMap(_)
            | Instruction::BuildList(_)
            | Instruction::BuildTuple(_)
            | Instruction::Add
            | Instruction::Mul
            | Instruction::Slice
            | Instruction::ApplyFilter(..)
            | Instruction::CallFunction(..)
            | Instruction::CallMethod(..)
            | Instruction::CallObject(_)
    )
}

/// The items of arguments from the last to the first, as they are taken out of the list again.
fn arguments(state: &State, values: &Value, times: usize) -> Result<Vec<Value>, Error> {
    let mut values: Vec<Value> = values.try_iter()?.collect();
    for value in &values {
        match value.is_kwargs() {
            true => {
                for key in value.try_iter()? {
                    pay(state, &value.get_item(&key)?, false, times)?;
                }
            }
            false => pay(state, value, false, times)?,
        }
    }
    values.reverse();
    Ok(values)
}

/// A list for what would be computed whenever it is looked at, by what it is computed from.
fn at_once(state: &State, value: Value) -> Result<Value, Error> {
    let is_lazy = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
        && !value.is_tuple()
        && value.downcast_object_ref::<Vec<Value>>().is_none();
    if !is_lazy {
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        if items.len() % VALUES_PER_FUEL == 0 {
            state.consume_fuel(1)?;
        }
        items.push(item);
    }
    Ok(items.into())
}

/// Takes the fuel for walking through a value `times` times. Namespaces may not be in others, nor in other values:
/// there they could hold themselves.
pub(super) fn pay(
    state: &State,
    value: &Value,
    is_inside: bool,
    times: usize,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            let depth = usize::from(is_inside);
            Walk { state, times, n: 0 }.enter(value, depth)
        }
        ValueKind::String => {
            let n_bytes = value.as_str().map_or(0, str::len);
            state.consume_fuel((times * n_bytes / BYTES_PER_FUEL) as u64)
        }
        _ => Ok(()),
    }
}

struct Walk<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    times: usize,
    n: usize,
}

impl Walk<'_, '_, '_> {
    fn enter(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.n += 1;
        if self.n.is_multiple_of(VALUES_PER_FUEL) {
            self.state.consume_fuel(self.times as u64)?;
        }
        let is_map = match value.kind() {
            ValueKind::Map => true,
            ValueKind::Seq | ValueKind::Iterable => false,
            ValueKind::String => {
                let n_bytes = value.as_str().map_or(0, str::len);
                let fuel = self.times * n_bytes / BYTES_PER_FUEL;
                return self.state.consume_fuel(fuel as u64);
            }
            _ => return Ok(()),
        };
        let refuse = |message| Err(Error::new(ErrorKind::InvalidOperation, message));
        if depth > MAX_DEPTH {
            return refuse("a list or map nests too deep");
        }
        let is_namespace = value
            .as_object()
            .is_some_and(|object| object.type_name().ends_with("::Namespace"));
        if is_namespace && depth > 0 {
            return refuse("a namespace is inside another value");
        }
        for item in value.try_iter()? {
            self.enter(&item, depth + 1)?;
            if is_map {
                self.enter(&value.get_item(&item)?, depth + 1)?;
            }
        }
        Ok(())
    }
}
