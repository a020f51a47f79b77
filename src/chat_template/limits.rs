//! Makes a template pay for all the work that it causes.
//!
//! The engine's fuel counts instructions and what they make, but not what lies inside of containers: comparing,
//! sorting, hashing and dropping go through all of it, on the stack. A list that holds another one twice, and that one
//! again another, is small and has no end, and so is a namespace that holds itself. So wherever a container is made
//! or goes into an operation, an instruction is put in (`compile.rs`) that walks through it, at the expense of the fuel.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Containers may not nest deeper.
const MAX_DEPTH: usize = 100;

/// Values that are walked through for a unit of fuel.
const VALUES_PER_FUEL: usize = 4;

/// Bytes of text for a unit of fuel, as the engine counts them.
pub(super) const BYTES_PER_FUEL: usize = 64;

/// The engine's types, and their names, that can hold each other: a namespace what is assigned to it, a loop what
/// `changed` was asked last, a macro the variables that it names.
const HOLDING: [(&str, &str); 3] = [
    ("::Namespace", "namespace"),
    ("::Loop", "loop"),
    ("::Macro", "macro"),
];

/// How often what sorts looks at a value, at most: the logarithm of the most values that the fuel allows.
const SORT_COST: usize = 24;

/// The tests and filters that are put in. A template that spells them, as a name for `map` perhaps, pays for nothing more.
pub(super) const COMPARED: &str = "|compared";
pub(super) const JOINED: &str = "|joined";
pub(super) const ATTRIBUTE: &str = "|attribute";
pub(super) const MADE: &str = "|made";
pub(super) const LAZY: &str = "|lazy";
pub(super) const AT_ONCE: &str = "|at-once";
pub(super) const ARGUMENTS: &str = "|arguments";
pub(super) const SORTED: &str = "|sorted";
pub(super) const KEPT: &str = "|kept";

/// Gives an environment what `compile.rs` puts in, and the tests that compare, which other filters call by name.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_test(COMPARED, |state: &State, value: &Value| {
        pay(state, value, false, 1)?;
        Ok::<_, Error>(true)
    });
    // The engine counts the text that is joined, and the text that is made.
    for name in [JOINED, MADE] {
        environment.add_test(name, |state: &State, value: &Value| {
            pay_for_container(state, value, false, 1)?;
            Ok::<_, Error>(true)
        });
    }
    environment.add_test(ATTRIBUTE, |state: &State, value: &Value| {
        pay_for_container(state, value, true, 1)?;
        Ok::<_, Error>(true)
    });
    environment.add_test(LAZY, |value: &Value| is_lazy(value));
    environment.add_filter(AT_ONCE, at_once);
    environment.add_filter(ARGUMENTS, |state: &State, values: &Value| {
        arguments(state, values, false, 1)
    });
    environment.add_filter(SORTED, |state: &State, values: &Value| {
        arguments(state, values, false, SORT_COST)
    });
    environment.add_filter(KEPT, |state: &State, values: &Value| {
        arguments(state, values, true, 1)
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

/// The items of arguments from the last to the first, as they are taken out of the list again. With `are_kept` the
/// first one holds the others afterwards.
fn arguments(
    state: &State,
    values: &Value,
    are_kept: bool,
    times: usize,
) -> Result<Vec<Value>, Error> {
    let mut values: Vec<Value> = values.try_iter()?.collect();
    for (index, value) in values.iter().enumerate() {
        let is_inside = are_kept && index > 0;
        match value.is_kwargs() {
            true => {
                for key in value.try_iter()? {
                    pay(state, &value.get_item(&key)?, is_inside, times)?;
                }
            }
            false => pay(state, value, is_inside, times)?,
        }
    }
    values.reverse();
    Ok(values)
}

/// Whether a value is a list that is computed whenever it is looked at, from what it is made of.
fn is_lazy(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
        && !value.is_tuple()
        && value.downcast_object_ref::<Vec<Value>>().is_none()
}

/// The list, computed.
fn at_once(state: &State, value: &Value) -> Result<Value, Error> {
    let mut items = Vec::new();
    for item in value.try_iter()? {
        if items.len() % VALUES_PER_FUEL == 0 {
            state.consume_fuel(1)?;
        }
        items.push(item);
    }
    Ok(items.into())
}

/// Takes the fuel for walking through a value `times` times. Namespaces, loops and macros may not be in others, nor in
/// other values: there they could hold themselves, or each other without end.
pub(super) fn pay(
    state: &State,
    value: &Value,
    is_inside: bool,
    times: usize,
) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => state.consume_fuel((times * text.len() / BYTES_PER_FUEL) as u64),
        None => pay_for_container(state, value, is_inside, times),
    }
}

/// As [`pay`], and nothing for a text.
fn pay_for_container(
    state: &State,
    value: &Value,
    is_inside: bool,
    times: usize,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::Plain => {
            let depth = usize::from(is_inside);
            Walk { state, times, n: 0 }.enter(value, depth)
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
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Plain => false,
            ValueKind::String => {
                let n_bytes = value.as_str().map_or(0, str::len);
                let fuel = self.times * n_bytes / BYTES_PER_FUEL;
                return self.state.consume_fuel(fuel as u64);
            }
            _ => return Ok(()),
        };
        let refuse =
            |message: &str| Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()));
        if depth > MAX_DEPTH {
            return refuse("a list or map nests too deep");
        }
        if let Some(object) = value.as_object()
            && depth > 0
        {
            for (name, shown) in HOLDING {
                if object.type_name().ends_with(name) {
                    return refuse(&format!("a {shown} is inside another value"));
                }
            }
        }
        if value.kind() == ValueKind::Plain {
            return Ok(());
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
