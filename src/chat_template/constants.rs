//! Refuses constants that are large: the engine computes them while it compiles, when there is no fuel yet.

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Stmt};
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Items of a list that is repeated a constant number of times. Text and tuples above a like size the engine leaves
/// to the rendering, which pays for them; lists it repeats whatever comes of them.
const MAX_ITEMS: usize = 1024;

/// Refuses a template with a constant list that becomes too large.
pub(super) fn check(template: &Stmt) -> Result<(), Error> {
    let mut expressions = Vec::new();
    let mut statements = vec![template];
    while let Some(statement) = statements.pop() {
        collect(statement, &mut statements, &mut expressions)?;
    }
    let mut index = 0;
    while let Some(&expression) = expressions.get(index) {
        push_parts(expression, &mut expressions);
        index += 1;
    }
    // Parts stand behind the whole: from the end on, what an operand is made of is known to be small.
    expressions.iter().rev().try_for_each(|e| check_product(e))
}

fn check_product(expression: &Expr) -> Result<(), Error> {
    let Expr::BinOp(product) = expression else {
        return Ok(());
    };
    if !matches!(product.op, BinOpKind::Mul) {
        return Ok(());
    }
    let (Some(left), Some(right)) = (product.left.as_const(), product.right.as_const()) else {
        return Ok(());
    };
    let n_items = |value: &Value| {
        let is_list = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
        is_list.then(|| value.len().unwrap_or(usize::MAX))
    };
    let (n_items, n) = match (n_items(&left), n_items(&right)) {
        (Some(n_items), _) => (n_items, right),
        (None, Some(n_items)) => (n_items, left),
        (None, None) => return Ok(()),
    };
    // What is no number of times is an error when it is rendered, or no time.
    let n = n.as_usize().unwrap_or(0);
    if n_items.saturating_mul(n) <= MAX_ITEMS {
        return Ok(());
    }
    let line = expression.span().start_line;
    let message = format!("line {line}: a constant list is too large: more than {MAX_ITEMS} items");
    Err(Error::new(ErrorKind::SyntaxError, message))
}

/// The statements and expressions of a statement.
fn collect<'t, 's>(
    statement: &'t Stmt<'s>,
    statements: &mut Vec<&'t Stmt<'s>>,
    expressions: &mut Vec<&'t Expr<'s>>,
) -> Result<(), Error> {
    match statement {
        Stmt::Template(template) => statements.extend(&template.children),
        Stmt::EmitExpr(emit) => expressions.push(&emit.expr),
        Stmt::ForLoop(for_loop) => {
            expressions.extend([&for_loop.target, &for_loop.iter]);
            expressions.extend(&for_loop.filter_expr);
            statements.extend(for_loop.body.iter().chain(&for_loop.else_body));
        }
        Stmt::IfCond(if_cond) => {
            expressions.push(&if_cond.expr);
            statements.extend(if_cond.true_body.iter().chain(&if_cond.false_body));
        }
        Stmt::WithBlock(with) => {
            expressions.extend(with.assignments.iter().flat_map(|(a, b)| [a, b]));
            statements.extend(&with.body);
        }
        Stmt::Set(set) => expressions.extend([&set.target, &set.expr]),
        Stmt::SetBlock(set) => {
            expressions.push(&set.target);
            expressions.extend(&set.filter);
            statements.extend(&set.body);
        }
        Stmt::AutoEscape(escape) => {
            expressions.push(&escape.enabled);
            statements.extend(&escape.body);
        }
        Stmt::FilterBlock(block) => {
            expressions.push(&block.filter);
            statements.extend(&block.body);
        }
        Stmt::Macro(declared) => {
            expressions.extend(declared.args.iter().chain(&declared.defaults));
            statements.extend(&declared.body);
        }
        Stmt::CallBlock(block) => {
            expressions.push(&block.call.expr);
            push_arguments(&block.call.args, expressions);
            let declared = &block.macro_decl;
            expressions.extend(declared.args.iter().chain(&declared.defaults));
            statements.extend(&declared.body);
        }
        Stmt::Do(call) => {
            expressions.push(&call.call.expr);
            push_arguments(&call.call.args, expressions);
        }
        Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => {}
        #[allow(
            unreachable_patterns,
            reason = "another crate may turn the engine's other statements on"
        )]
        _ => {
            let message = "statements about other templates are not supported";
            return Err(Error::new(ErrorKind::SyntaxError, message));
        }
    }
    Ok(())
}

fn push_parts<'t, 's>(expression: &'t Expr<'s>, parts: &mut Vec<&'t Expr<'s>>) {
    match expression {
        Expr::Var(_) | Expr::Const(_) => {}
        Expr::Slice(slice) => {
            parts.push(&slice.expr);
            parts.extend(
                [&slice.start, &slice.stop, &slice.step]
                    .into_iter()
                    .flatten(),
            );
        }
        Expr::UnaryOp(operation) => parts.push(&operation.expr),
        Expr::BinOp(operation) => parts.extend([&operation.left, &operation.right]),
        Expr::Compare(compare) => {
            parts.push(&compare.expr);
            parts.extend(compare.ops.iter().map(|operation| &operation.expr));
        }
        Expr::IfExpr(choice) => {
            parts.extend([&choice.test_expr, &choice.true_expr]);
            parts.extend(&choice.false_expr);
        }
        Expr::Filter(filter) => {
            parts.extend(&filter.expr);
            push_arguments(&filter.args, parts);
        }
        Expr::Test(test) => {
            parts.push(&test.expr);
            push_arguments(&test.args, parts);
        }
        Expr::GetAttr(attribute) => parts.push(&attribute.expr),
        Expr::GetItem(item) => parts.extend([&item.expr, &item.subscript_expr]),
        Expr::Call(call) => {
            parts.push(&call.expr);
            push_arguments(&call.args, parts);
        }
        Expr::List(list) => parts.extend(&list.items),
        Expr::Tuple(tuple) => parts.extend(&tuple.items),
        Expr::Map(map) => parts.extend(map.keys.iter().chain(&map.values)),
    }
}

fn push_arguments<'t, 's>(arguments: &'t [CallArg<'s>], parts: &mut Vec<&'t Expr<'s>>) {
    parts.extend(arguments.iter().map(|argument| match argument {
        CallArg::Pos(e) | CallArg::Kwarg(_, e) | CallArg::PosSplat(e) | CallArg::KwargSplat(e) => e,
    }));
}
