//! `#[test]` of the suites that run on `support::harness` instead of libtest.

use proc_macro::{TokenStream, TokenTree};

/// Registers the function with the harness, under its path.
#[proc_macro_attribute]
pub fn test(_arguments: TokenStream, function: TokenStream) -> TokenStream {
    let mut tokens = function.clone().into_iter();
    let is_fn = |token: &TokenTree| matches!(token, TokenTree::Ident(word) if word.to_string() == "fn");
    let name = match (tokens.find(is_fn), tokens.next()) {
        (Some(_), Some(TokenTree::Ident(name))) => name,
        _ => panic!("#[test] is for functions"),
    };
    let registered: TokenStream = format!("::support::register_test!({name});").parse().expect("a macro call");
    function.into_iter().chain(registered).collect()
}
