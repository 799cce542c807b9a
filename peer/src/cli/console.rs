//! Standard error, shared by log lines and the prompt.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use rustyline::ExternalPrinter;

/// Messages that wait to be printed above a prompt; when so many wait, further ones go to standard error.
const MAX_WAITING: usize = 256;

/// Where log lines are written: above the prompt while there is one, else to standard error.
#[derive(Debug, Clone, Default)]
pub struct Console {
    prompt: Arc<Mutex<Option<mpsc::SyncSender<String>>>>,
}

impl Console {
    /// From now on messages are printed by `printer`, from a thread of its own: the printer may wait for the
    /// prompt, which no one else must.
    pub(crate) fn attach(&self, mut printer: impl ExternalPrinter + Send + 'static) -> io::Result<()> {
        let (sender, messages) = mpsc::sync_channel::<String>(MAX_WAITING);
        std::thread::Builder::new().name("prompt messages".to_owned()).spawn(move || {
            for message in messages {
                if printer.print(message).is_err() {
                    return;
                }
            }
        })?;
        *self.prompt.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        Ok(())
    }

    /// From now on messages go to standard error.
    pub(crate) fn detach(&self) {
        *self.prompt.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Write for Console {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let prompt = self.prompt.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = prompt
            .as_ref()
            .is_some_and(|prompt| prompt.try_send(String::from_utf8_lossy(message).into_owned()).is_ok());
        drop(prompt);
        if !taken {
            io::stderr().write_all(message)?;
        }
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Printer(mpsc::Sender<String>);

    impl ExternalPrinter for Printer {
        fn print(&mut self, message: String) -> rustyline::Result<()> {
            let _ = self.0.send(message);
            Ok(())
        }
    }

    #[test]
    fn a_message_goes_through_the_prompt_while_there_is_one() {
        let (sender, printed) = mpsc::channel();
        let mut console = Console::default();
        console.attach(Printer(sender)).unwrap();
        console.write_all(b"hello\n").unwrap();
        assert_eq!(printed.recv_timeout(Duration::from_secs(10)).unwrap(), "hello\n");
        console.detach();
        console.write_all(b"to standard error\n").unwrap();
        // The printer's thread ends, and with it the sender: nothing else was printed.
        assert_eq!(printed.recv_timeout(Duration::from_secs(10)), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
