//! The filters of jinja2 that go through sequences, but for those that apply another filter or a test.

use std::collections::HashSet;

use super::arguments::{Args, int_or};
use super::ast::Operator;
use super::budget::{Budget, NODE};
use super::compare::{equal, fold, less, sort};
use super::error::{TemplateError, TemplateResult};
use super::lookup;
use super::operators::binary;
use super::python;
use super::value::{Key, Value, View};

/// `value|name(args)`, where it is a filter of this file.
pub(super) fn apply(budget: &Budget, name: &str, value: &Value, args: &Args) -> Option<TemplateResult<Value>> {
    let filter: fn(&Budget, &str, &Value, Args) -> TemplateResult<Value> = match name {
        "batch" => batch,
        "dictsort" => dict_sort,
        "first" | "last" => end,
        "groupby" => group_by,
        "items" => items,
        "join" => join,
        "list" => list,
        "max" | "min" => extreme,
        "reverse" => reverse,
        "slice" => slice,
        "sort" => sorted,
        "sum" => sum,
        "unique" => unique,
        _ => return None,
    };
    Some(filter(budget, name, value, args.clone()))
}

/// What `attribute='a.0.b'` names in an item.
pub(super) fn attribute(budget: &Budget, item: Value, path: &Value, default: Option<&Value>) -> TemplateResult<Value> {
    let default = default.filter(|d| !matches!(d, Value::None));
    let mut value = item;
    let mut step = |key: &Value| -> TemplateResult<()> {
        value = lookup::item(budget, &value, key)?;
        if let (Some(default), true) = (default, value.is_undefined()) {
            value = default.clone();
        }
        Ok(())
    };
    match path.as_str() {
        None if matches!(path, Value::None) => {}
        None => step(path)?,
        Some(path) => {
            for part in path.split('.') {
                let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
                let number = if digits { part.parse().ok().map(Value::Int) } else { None };
                step(&number.unwrap_or_else(|| Value::str(part)))?;
            }
        }
    }
    Ok(value)
}

/// As [`attribute`] of several paths with commas between them: the key to sort by.
fn sort_key(budget: &Budget, item: &Value, path: &Value, case_sensitive: bool) -> TemplateResult<Value> {
    let paths = match path.as_str() {
        Some(paths) => paths.split(',').map(Value::str).collect(),
        None => vec![path.clone()],
    };
    let mut keys = Vec::new();
    for path in paths {
        keys.push(fold(budget, attribute(budget, item.clone(), &path, None)?, case_sensitive)?);
    }
    budget.list(keys)
}

fn truth(value: Option<Value>) -> bool {
    value.is_some_and(|v| v.truth())
}

fn batch(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [count, fill] = args.bind(name, ["linecount", "fill_with"], 1)?;
    let count = int_or(name, count, 1)?;
    let items = value.iterate(budget)?;
    let size = usize::try_from(count).unwrap_or(usize::MAX);
    let mut batches: Vec<Vec<Value>> = Vec::new();
    if count <= 0 && !items.is_empty() {
        // jinja2 gives the empty batch when it is full, and never another.
        if count == 0 {
            batches.push(Vec::new());
        }
        batches.push(items);
    } else {
        batches.extend(items.chunks(size.max(1)).map(<[Value]>::to_vec));
    }
    if let (Some(fill), Some(last)) = (fill.filter(|f| !matches!(f, Value::None)), batches.last_mut())
        && count > 0
    {
        budget.check_size(size.checked_mul(NODE))?;
        last.resize(size.max(last.len()), fill);
    }
    let batches = batches.into_iter().map(|b| budget.list(b)).collect::<TemplateResult<_>>()?;
    Ok(Value::generator(batches))
}

fn slice(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [slices, fill] = args.bind(name, ["slices", "fill_with"], 1)?;
    let slices = int_or(name, slices, 1)?;
    if slices == 0 {
        return Err(TemplateError::new("slice: the number of slices cannot be 0"));
    }
    let slices = usize::try_from(slices).unwrap_or(0);
    budget.check_size(slices.checked_mul(2 * NODE))?;
    let items = value.iterate(budget)?;
    let each = items.len().checked_div(slices).unwrap_or(0);
    let extra = items.len().checked_rem(slices).unwrap_or(0);
    let mut rest = items.as_slice();
    let mut out = Vec::with_capacity(slices);
    for i in 0..slices {
        let (part, after) = rest.split_at_checked(each + usize::from(i < extra)).unwrap_or((rest, &[]));
        rest = after;
        let mut part = part.to_vec();
        if i >= extra {
            part.extend(fill.clone().filter(|f| !matches!(f, Value::None)));
        }
        out.push(budget.list(part)?);
    }
    Ok(Value::generator(out))
}

fn dict_sort(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [case, by, reverse] = args.bind(name, ["case_sensitive", "by", "reverse"], 0)?;
    let by = match by.as_ref().and_then(Value::as_str) {
        None if by.is_none() => false,
        Some("key") => false,
        Some("value") => true,
        _ => return Err(TemplateError::new("dictsort: by must be key or value")),
    };
    let Value::Dict(dict) = value else {
        return Err(TemplateError::new(format!("dictsort needs a mapping, not a {}", value.kind())));
    };
    let case = truth(case);
    let mut keyed = Vec::new();
    for (key, item) in dict.iter() {
        let by = fold(budget, if by { item } else { key }.clone(), case)?;
        keyed.push((by, budget.tuple(vec![key.clone(), item.clone()])?));
    }
    budget.list(sort(budget, keyed, truth(reverse))?)
}

fn end(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [] = args.positional(name, 0)?;
    if name == "last" && matches!(value, Value::Generator(_)) {
        return Err(TemplateError::new(
            "last: a generator cannot be gone through from its end; make a list of it first",
        ));
    }
    let found = match (value, name) {
        // The rest stays for whoever goes on.
        (Value::Generator(items), _) => items.borrow_mut().pop_front(),
        (_, "first") => value.iterate(budget)?.into_iter().next(),
        _ => value.iterate(budget)?.pop(),
    };
    Ok(found.unwrap_or_else(|| Value::undefined(format!("there is no {name} item, the sequence is empty"))))
}

fn group_by(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [path, default, case] = args.bind(name, ["attribute", "default", "case_sensitive"], 1)?;
    let path = path.unwrap_or(Value::None);
    let case = truth(case);
    let mut keyed = Vec::new();
    for item in value.iterate(budget)? {
        let key = attribute(budget, item.clone(), &path, default.as_ref())?;
        let pair = budget.tuple(vec![key.clone(), item])?;
        keyed.push((fold(budget, key, case)?, pair));
    }
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for pair in sort(budget, keyed, false)? {
        let Value::Tuple(pair) = pair else { continue };
        let [key, item] = pair.items.as_slice() else { continue };
        let folded = fold(budget, key.clone(), case)?;
        match groups.last_mut() {
            Some((last, _, items)) if equal(budget, last, &folded)? => items.push(item.clone()),
            // The first item of a group gives it its name.
            _ => groups.push((folded, key.clone(), vec![item.clone()])),
        }
    }
    budget.list(groups.into_iter().map(|(_, key, items)| budget.group(key, items)).collect::<TemplateResult<_>>()?)
}

fn items(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [] = args.positional(name, 0)?;
    match value {
        Value::Undefined(_) => Ok(Value::generator(Vec::new())),
        Value::Dict(dict) => Ok(Value::generator(Value::View(dict.clone(), View::Items).iterate(budget)?)),
        other => Err(TemplateError::new(format!("items needs a mapping, not a {}", other.kind()))),
    }
}

fn join(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [separator, path] = args.bind(name, ["d", "attribute"], 0)?;
    let separator = separator.unwrap_or_else(|| Value::str(""));
    let separator = python::text(budget, &separator)?;
    let mut out = String::new();
    for (i, item) in value.iterate(budget)?.into_iter().enumerate() {
        let item = match &path {
            Some(path) => attribute(budget, item, path, None)?,
            None => item,
        };
        let item = python::text(budget, &item)?;
        budget.check_size(out.len().checked_add(item.len()).and_then(|n| n.checked_add(separator.len())))?;
        if i > 0 {
            out.push_str(&separator);
        }
        out.push_str(&item);
    }
    budget.text(out)
}

fn list(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [] = args.positional(name, 0)?;
    budget.list(value.iterate(budget)?)
}

fn extreme(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [case, path] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
    let (case, path) = (truth(case), path.unwrap_or(Value::None));
    let mut best: Option<(Value, Value)> = None;
    for item in value.iterate(budget)? {
        let key = fold(budget, attribute(budget, item.clone(), &path, None)?, case)?;
        let better = match &best {
            None => true,
            Some((held, _)) if name == "min" => less(budget, &key, held)?,
            Some((held, _)) => less(budget, held, &key)?,
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or_else(|| Value::undefined(format!("{name}: the sequence is empty")), |(_, item)| item))
}

fn reverse(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [] = args.positional(name, 0)?;
    if let Some(text) = value.as_str() {
        let reversed: String = text.chars().rev().collect();
        return if matches!(value, Value::Markup(_)) { budget.markup(reversed) } else { budget.text(reversed) };
    }
    let mut items = value.iterate(budget)?;
    items.reverse();
    // What has no end to begin from becomes a list.
    if matches!(value, Value::Generator(_)) { budget.list(items) } else { Ok(Value::generator(items)) }
}

fn sorted(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [reverse, case, path] = args.bind(name, ["reverse", "case_sensitive", "attribute"], 0)?;
    let (case, path) = (truth(case), path.unwrap_or(Value::None));
    let mut keyed = Vec::new();
    for item in value.iterate(budget)? {
        keyed.push((sort_key(budget, &item, &path, case)?, item));
    }
    budget.list(sort(budget, keyed, truth(reverse))?)
}

fn sum(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [path, start] = args.bind(name, ["attribute", "start"], 0)?;
    let mut total = start.unwrap_or(Value::Int(0));
    if total.as_str().is_some() {
        return Err(TemplateError::new("sum cannot begin with a text; use join"));
    }
    for item in value.iterate(budget)? {
        let item = match &path {
            Some(path) => attribute(budget, item, path, None)?,
            None => item,
        };
        total = binary(budget, Operator::Add, &total, &item)?;
    }
    Ok(total)
}

fn unique(budget: &Budget, name: &str, value: &Value, args: Args) -> TemplateResult<Value> {
    let [case, path] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
    let (case, path) = (truth(case), path.unwrap_or(Value::None));
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for item in value.iterate(budget)? {
        let key = fold(budget, attribute(budget, item.clone(), &path, None)?, case)?;
        if seen.insert(Key::new(&key)?) {
            out.push(item);
        }
    }
    Ok(Value::generator(out))
}
