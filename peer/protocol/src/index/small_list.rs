//! Lists that are nearly always one long.

/// A list whose only element lies in place, without an allocation and without a length.
#[derive(Debug, Clone, Default)]
pub(crate) enum Few<T> {
    /// Nothing.
    #[default]
    None,
    /// One, in place.
    One(T),
    /// Two or more.
    More(Box<Many<T>>),
}

/// Behind one pointer: a `Vec` in place would be three times as large as what it saves.
#[derive(Debug, Clone)]
pub(crate) struct Many<T>(Vec<T>);

impl<T> Few<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::None => &[],
            Self::One(only) => std::slice::from_ref(only),
            Self::More(many) => &many.0,
        }
    }

    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        match self {
            Self::None => None,
            Self::One(only) => (at == 0).then_some(only),
            Self::More(many) => many.0.get_mut(at),
        }
    }

    pub(crate) fn insert(&mut self, at: usize, element: T) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(element),
            Self::One(only) => {
                let mut both = vec![only];
                both.insert(at, element);
                Self::More(Box::new(Many(both)))
            }
            Self::More(mut many) => {
                many.0.insert(at, element);
                Self::More(many)
            }
        };
    }

    /// Takes out the element at `at`, if there is one.
    pub(crate) fn remove(&mut self, at: usize) -> Option<T> {
        match std::mem::take(self) {
            Self::None => None,
            Self::One(only) if at == 0 => Some(only),
            Self::One(only) => {
                *self = Self::One(only);
                None
            }
            Self::More(mut many) => {
                let removed = (at < many.0.len()).then(|| many.0.remove(at));
                *self = match many.0.len() {
                    1 => many.0.pop().map_or(Self::None, Self::One),
                    _ => Self::More(many),
                };
                removed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_list() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut few, mut model) = (Few::None, Vec::new());
            for n in 0..50 {
                if rng.bool() {
                    let at = rng.usize(0..=model.len());
                    few.insert(at, n);
                    model.insert(at, n);
                } else {
                    let at = rng.usize(0..=model.len());
                    let removed = (at < model.len()).then(|| model.remove(at));
                    assert_eq!(few.remove(at), removed);
                }
                assert_eq!(few.as_slice(), model);
                assert_eq!(few.get_mut(1).copied(), model.get(1).copied());
                assert!(model.len() != 1 || matches!(few, Few::One(_)));
            }
        }
    }
}
