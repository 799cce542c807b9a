//! What a mistyped word may have meant.

use shared::limits::MAX_SUGGESTED_CHARS;

/// The words nearest to `typed`, at most three: those fewest slips of the finger away (at most a third of its
/// letters, or two), then those it begins.
pub(crate) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let typed: Vec<char> = typed.chars().flat_map(char::to_lowercase).take(MAX_SUGGESTED_CHARS).collect();
    if typed.is_empty() {
        return Vec::new();
    }
    let most = (typed.len() / 3).max(2);
    let (mut slipped, mut begun) = (Vec::new(), Vec::new());
    for word in known {
        let letters: Vec<char> = word.chars().flat_map(char::to_lowercase).collect();
        let slips = distance(&typed, &letters);
        // With nearly every letter another, a short word would be near to all short words.
        if slips <= most && slips < letters.len().min(typed.len()) {
            slipped.push((slips, word));
        } else if letters.starts_with(&typed) {
            begun.push(word);
        }
    }
    let fewest = slipped.iter().map(|(slips, _)| *slips).min();
    let slipped = slipped.into_iter().filter(|(slips, _)| Some(*slips) == fewest).map(|(_, word)| word);
    slipped.chain(begun).take(3).collect()
}

/// Letters to insert, delete, replace, or swap with their neighbour: optimal string alignment distance
/// (Boytsov 2011, "Indexing methods for approximate dictionary searching", section 2).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, &from) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, &to) in b.iter().enumerate() {
            let mut cost = (above[j] + usize::from(from != to)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && from == b[j - 1] && a[i - 1] == to {
                cost = cost.min(before[j - 1] + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: [&str; 6] = ["list", "listAll", "download", "tracker", "kill", "exit"];

    #[test]
    fn slips_and_beginnings_are_near() {
        assert_eq!(nearest("lsit", WORDS), ["list"]);
        assert_eq!(nearest("LISTALL", WORDS)[0], "listAll");
        assert_eq!(nearest("down", WORDS), ["download"]);
        assert_eq!(nearest("dowlnaod", WORDS), ["download"]);
        assert_eq!(nearest("traker", WORDS), ["tracker"]);
    }

    #[test]
    fn other_words_are_not() {
        for far in ["", "zz", "frobnicate", &"x".repeat(5000)] {
            assert!(nearest(far, WORDS).is_empty(), "{far:?}");
        }
    }

    #[test]
    fn the_distance_counts_slips() {
        let d = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!((d("", "abc"), d("abc", "abc"), d("kitten", "sitting"), d("ab", "ba")), (3, 0, 3, 1));
    }
}
