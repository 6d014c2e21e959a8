//! New values, each within the budget of the rendering.

use std::rc::Rc;

use serde_json::Value as Json;

use super::budget::{Budget, DEPTH, NODE};
use super::error::{TemplateError, TemplateResult};
use super::value::{Dict, List, Value, View};

impl Budget {
    /// A new text.
    pub(super) fn text(&self, text: impl Into<Rc<str>> + AsRef<str>) -> TemplateResult<Value> {
        self.charge_text(text.as_ref())?;
        Ok(Value::Str(text.into()))
    }

    /// A new text that needs no HTML escapes.
    pub(super) fn markup(&self, text: String) -> TemplateResult<Value> {
        self.charge_text(&text)?;
        Ok(Value::Markup(text.into()))
    }

    fn charge_text(&self, text: &str) -> TemplateResult<()> {
        self.check_size(Some(text.len()))?;
        self.spend(text.len().saturating_add(NODE))
    }

    /// A new list.
    pub(super) fn list(&self, items: Vec<Value>) -> TemplateResult<Value> {
        Ok(Value::List(self.sequence(items)?))
    }

    /// A new tuple.
    pub(super) fn tuple(&self, items: Vec<Value>) -> TemplateResult<Value> {
        Ok(Value::Tuple(self.sequence(items)?))
    }

    /// A group of `groupby`.
    pub(super) fn group(&self, key: Value, items: Vec<Value>) -> TemplateResult<Value> {
        let items = vec![key, self.list(items)?];
        let (weight, depth) = self.weigh(items.iter())?;
        Ok(Value::Tuple(Rc::new(List { items, grouped: true, weight, depth })))
    }

    fn sequence(&self, items: Vec<Value>) -> TemplateResult<Rc<List>> {
        self.spend(items.len().saturating_mul(NODE).saturating_add(NODE))?;
        let (weight, depth) = self.weigh(items.iter())?;
        Ok(Rc::new(List { items, grouped: false, weight, depth }))
    }

    /// A new dictionary.
    pub(super) fn dict(&self, mut dict: Dict) -> TemplateResult<Value> {
        self.spend(dict.len().saturating_mul(4 * NODE).saturating_add(NODE))?;
        (dict.weight, dict.depth) = self.weigh(dict.iter().flat_map(|(k, v)| [k, v]))?;
        Ok(Value::Dict(Rc::new(dict)))
    }

    /// Size and nesting of a container of these values. A part that occurs twice counts twice, as it does for whatever walks the
    /// container.
    pub(super) fn weigh<'v>(&self, items: impl Iterator<Item = &'v Value>) -> TemplateResult<(usize, usize)> {
        let (mut weight, mut depth) = (NODE, 0);
        for item in items {
            weight = item.weight().saturating_add(weight);
            depth = depth.max(item.depth());
        }
        self.check_size(Some(weight))?;
        if depth >= DEPTH {
            return Err(TemplateError::new(format!("values are nested more than {DEPTH} deep")));
        }
        Ok((weight, depth + 1))
    }
}

impl Value {
    /// The value of a JSON document.
    pub(super) fn from_json(budget: &Budget, json: &Json) -> TemplateResult<Self> {
        Ok(match json {
            Json::Null => Self::None,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Self::Int(n.into()),
                (None, Some(n)) => Self::Int(n.into()),
                (None, None) => Self::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::str(text),
            Json::Array(items) => {
                budget.list(items.iter().map(|v| Self::from_json(budget, v)).collect::<TemplateResult<_>>()?)?
            }
            Json::Object(map) => {
                let mut dict = Dict::default();
                for (key, value) in map {
                    dict.insert(Self::str(key), Self::from_json(budget, value)?)?;
                }
                budget.dict(dict)?
            }
        })
    }

    /// The items of a loop over the value; a generator is empty afterwards.
    pub(super) fn iterate(&self, budget: &Budget) -> TemplateResult<Vec<Value>> {
        let count = match self {
            // A character is shorter than the value that holds it.
            Self::Str(text) | Self::Markup(text) => text.len(),
            other => other.len().unwrap_or(0),
        };
        budget.spend(count.saturating_mul(NODE))?;
        Ok(match self {
            Self::Undefined(_) => Vec::new(),
            Self::Str(text) => text.chars().map(|c| Self::str(c.encode_utf8(&mut [0; 4]))).collect(),
            // Python goes through the characters of a Markup as plain texts.
            Self::Markup(text) => text.chars().map(|c| Self::str(c.encode_utf8(&mut [0; 4]))).collect(),
            Self::List(list) | Self::Tuple(list) => list.items.clone(),
            Self::Dict(dict) | Self::View(dict, View::Keys) => dict.iter().map(|(k, _)| k.clone()).collect(),
            Self::View(dict, View::Values) => dict.iter().map(|(_, v)| v.clone()).collect(),
            Self::View(dict, View::Items) => {
                dict.iter().map(|(k, v)| budget.tuple(vec![k.clone(), v.clone()])).collect::<TemplateResult<_>>()?
            }
            Self::Range(range) => (0..range.len()).filter_map(|i| range.get(i)).map(Self::Int).collect(),
            Self::Generator(items) => items.borrow_mut().drain(..).collect(),
            other => return Err(TemplateError::new(format!("a {} cannot be iterated over", other.kind()))),
        })
    }
}
