//! Lists that nearly always have one element.

/// List whose only element is stored in place, without an allocation and a length.
#[derive(Debug, Clone, Default)]
pub(crate) enum SmallList<T> {
    /// No element.
    #[default]
    None,
    /// One element, in place.
    One(T),
    /// Two or more elements.
    More(Box<Spilled<T>>),
}

/// Two or more elements behind one pointer: a `Vec` in place would take three times as much as the list saves.
#[derive(Debug, Clone)]
pub(crate) struct Spilled<T>(Vec<T>);

impl<T> SmallList<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::None => &[],
            Self::One(only) => std::slice::from_ref(only),
            Self::More(spilled) => &spilled.0,
        }
    }

    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        match self {
            Self::None => None,
            Self::One(only) => (at == 0).then_some(only),
            Self::More(spilled) => spilled.0.get_mut(at),
        }
    }

    pub(crate) fn insert(&mut self, at: usize, element: T) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(element),
            Self::One(only) => {
                let mut both = vec![only];
                both.insert(at, element);
                Self::More(Box::new(Spilled(both)))
            }
            Self::More(mut spilled) => {
                spilled.0.insert(at, element);
                Self::More(spilled)
            }
        };
    }

    /// Removes and returns the element at `at`, if there is one.
    pub(crate) fn remove(&mut self, at: usize) -> Option<T> {
        match std::mem::take(self) {
            Self::None => None,
            Self::One(only) if at == 0 => Some(only),
            Self::One(only) => {
                *self = Self::One(only);
                None
            }
            Self::More(mut spilled) => {
                let removed = (at < spilled.0.len()).then(|| spilled.0.remove(at));
                *self = match spilled.0.len() {
                    1 => spilled.0.pop().map_or(Self::None, Self::One),
                    _ => Self::More(spilled),
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
    fn random_insertions_and_removals_match_a_vec() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut list, mut model) = (SmallList::None, Vec::new());
            for n in 0..50 {
                if rng.bool() {
                    let at = rng.usize(0..=model.len());
                    list.insert(at, n);
                    model.insert(at, n);
                } else {
                    let at = rng.usize(0..=model.len());
                    let removed = (at < model.len()).then(|| model.remove(at));
                    assert_eq!(list.remove(at), removed);
                }
                assert_eq!(list.as_slice(), model);
                assert_eq!(list.get_mut(1).copied(), model.get(1).copied());
                assert!(model.len() != 1 || matches!(list, SmallList::One(_)));
            }
        }
    }
}
