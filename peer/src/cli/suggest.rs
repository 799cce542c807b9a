//! Suggestions for mistyped words.

use super::params::MAX_SUGGESTED_CHARS;

/// Suggestions for one word at most.
const MAX_SUGGESTIONS: usize = 3;

/// Returns the known words most similar to `typed`, at most three: those with the smallest edit distance, if it is at
/// most a third of the word's length or two, then those that start with it. Case is ignored.
pub(crate) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let typed: Vec<char> = typed.chars().flat_map(char::to_lowercase).take(MAX_SUGGESTED_CHARS).collect();
    if typed.is_empty() {
        return Vec::new();
    }
    let max_edits = (typed.len() / 3).max(2);
    let (mut similar, mut completions) = (Vec::new(), Vec::new());
    for word in known {
        let letters: Vec<char> = word.chars().flat_map(char::to_lowercase).collect();
        let edits = distance(&typed, &letters);
        // If every letter could be replaced, each short word would be similar to all others.
        if edits <= max_edits && edits < letters.len().min(typed.len()) {
            similar.push((edits, word));
        } else if letters.starts_with(&typed) {
            completions.push(word);
        }
    }
    let fewest = similar.iter().map(|(edits, _)| *edits).min();
    let similar = similar.into_iter().filter(|(edits, _)| Some(*edits) == fewest).map(|(_, word)| word);
    similar.chain(completions).take(MAX_SUGGESTIONS).collect()
}

/// Optimal string alignment distance: insertions, deletions, replacements, and transpositions of neighbours
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
    fn mistyped_and_incomplete_words_get_suggestions() {
        assert_eq!(nearest("lsit", WORDS), ["list"]);
        assert_eq!(nearest("LISTALL", WORDS)[0], "listAll");
        assert_eq!(nearest("down", WORDS), ["download"]);
        assert_eq!(nearest("dowlnaod", WORDS), ["download"]);
        assert_eq!(nearest("traker", WORDS), ["tracker"]);
    }

    #[test]
    fn dissimilar_words_get_no_suggestion() {
        for far in ["", "zz", "frobnicate", &"x".repeat(5000)] {
            assert!(nearest(far, WORDS).is_empty(), "{far:?}");
        }
    }

    #[test]
    fn distance_counts_edits() {
        let d = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!((d("", "abc"), d("abc", "abc"), d("kitten", "sitting"), d("ab", "ba")), (3, 0, 3, 1));
    }
}
