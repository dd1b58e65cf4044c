//! Python values to Rust values, checked once.

use crate::errors::BadInputError;
use memkv_core::SpaceDescription;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

/// The keys of one batch, copied out of Python so that the interpreter lock can be released.
pub(crate) struct Keys {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Keys {
    /// Copies a list or tuple of `str` or `bytes`.
    pub(crate) fn from_python(keys: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut collected = Self { bytes: Vec::new(), ends: Vec::new() };
        if let Ok(list) = keys.cast::<PyList>() {
            collected.reserve(list.len());
            list.iter().try_for_each(|key| collected.push(&key))?;
        } else if let Ok(tuple) = keys.cast::<PyTuple>() {
            collected.reserve(tuple.len());
            tuple.iter().try_for_each(|key| collected.push(&key))?;
        } else {
            return Err(BadInputError::new_err(format!(
                "keys must be a list of str or bytes, not {}",
                keys.get_type().name()?
            )));
        }
        Ok(collected)
    }

    /// One key, from `str` or `bytes`.
    pub(crate) fn one(key: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut collected = Self { bytes: Vec::new(), ends: Vec::new() };
        collected.push(key)?;
        Ok(collected)
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The keys in their order.
    pub(crate) fn slices(&self) -> Vec<&[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end]).collect()
    }

    fn reserve(&mut self, keys: usize) {
        // SGLang's keys are 64 hex digits.
        self.bytes.reserve(keys * 64);
        self.ends.reserve(keys);
    }

    fn push(&mut self, key: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Ok(text) = key.cast::<PyString>() {
            self.bytes.extend_from_slice(text.to_str()?.as_bytes());
        } else if let Ok(bytes) = key.cast::<PyBytes>() {
            self.bytes.extend_from_slice(bytes.as_bytes());
        } else {
            return Err(BadInputError::new_err(format!(
                "a key must be str or bytes, not {}",
                key.get_type().name()?
            )));
        }
        self.ends.push(self.bytes.len());
        Ok(())
    }
}

/// Non-negative integers from a list, a NumPy array, a CPU tensor, or the bytes of native 64-bit integers.
pub(crate) fn integers(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return integers_from_bytes(name, bytes.as_bytes());
    }
    if let Ok(list) = value.cast::<PyList>() {
        return list.iter().map(|item| integer(name, &item)).collect();
    }
    if let Ok(tuple) = value.cast::<PyTuple>() {
        return tuple.iter().map(|item| integer(name, &item)).collect();
    }
    let array = if value.hasattr("numpy")? { value.call_method0("numpy")? } else { value.clone() };
    if array.hasattr("tobytes")? && array.hasattr("dtype")? {
        let dtype = array.getattr("dtype")?;
        let kind: String = dtype.getattr("kind")?.extract()?;
        let width: usize = dtype.getattr("itemsize")?.extract()?;
        if width == 8 && (kind == "i" || kind == "u") {
            let bytes = array.call_method0("tobytes")?;
            return integers_from_bytes(name, bytes.cast::<PyBytes>()?.as_bytes());
        }
        return Err(BadInputError::new_err(format!("{name} must hold 64-bit integers, not {kind}{width}")));
    }
    Err(BadInputError::new_err(format!(
        "{name} must be a list, array or tensor of integers, not {}",
        value.get_type().name()?
    )))
}

/// Native 64-bit integers, none of them negative.
pub(crate) fn integers_from_bytes(name: &str, bytes: &[u8]) -> PyResult<Vec<usize>> {
    let (words, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(BadInputError::new_err(format!("{name} has {} bytes, not a multiple of 8", bytes.len())));
    }
    words.iter().map(|word| non_negative(name, i64::from_ne_bytes(*word))).collect()
}

fn integer(name: &str, item: &Bound<'_, PyAny>) -> PyResult<usize> {
    item.extract().map_err(|_| {
        BadInputError::new_err(format!("{name} must hold non-negative integers below 2^64, got {item}"))
    })
}

fn non_negative(name: &str, value: i64) -> PyResult<usize> {
    usize::try_from(value)
        .map_err(|_| BadInputError::new_err(format!("{name} must not be negative, got {value}")))
}

/// A space from its name or from its fields.
pub(crate) fn space_description(value: &Bound<'_, PyAny>) -> PyResult<SpaceDescription> {
    let description = if let Ok(name) = value.cast::<PyString>() {
        SpaceDescription::named(name.to_str()?)
    } else if let Ok(fields) = value.cast::<PyDict>() {
        let mut collected = Vec::with_capacity(fields.len());
        for (name, text) in fields.iter() {
            let pair: PyResult<(String, String)> = (name, text).into_pyobject(value.py())?.extract();
            collected.push(pair.map_err(|_| BadInputError::new_err("a space's fields map str to str"))?);
        }
        SpaceDescription::new(collected)
    } else {
        return Err(BadInputError::new_err(format!(
            "a space is a name or a dict of fields, not {}",
            value.get_type().name()?
        )));
    };
    description.map_err(|error| BadInputError::new_err(error.to_string()))
}

/// A setting's value as text: `str`, `int`, `float`, `bool`, or a list of them, joined by commas.
pub(crate) fn setting(name: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    if let Ok(flag) = value.extract::<bool>() {
        return Ok(flag.to_string());
    }
    if let Ok(list) = value.cast::<PyList>() {
        let parts: PyResult<Vec<String>> = list.iter().map(|item| setting(name, &item)).collect();
        return Ok(parts?.join(","));
    }
    if value.cast::<PyString>().is_ok() || value.extract::<f64>().is_ok() {
        return Ok(value.str()?.to_str()?.to_owned());
    }
    Err(BadInputError::new_err(format!(
        "the setting {name} must be text or a number, not {}",
        value.get_type().name()?
    )))
}
